//! Fail points: the places on the way from a decision to a receiver's answer where a test lets the process die, or a step fail.
//!
//! `FAIL_POINT=committed:crash` aborts there, without a flush or a destructor; `FAIL_POINT=committed:error` lets the step fail once, and
//! `committed:panic` the thread or task panic; `committed:wait` takes as long as standard input is open; `committed:error@3` when the place is come to for the third time. Only builds with debug assertions have them (`cargo test`,
//! `cargo run`): in a release build [`at`] is empty, and the variable is not read.

#[cfg(debug_assertions)]
use std::sync::Mutex;

/// Where it can happen: a closed list, in the order in which a decision comes by. `tests/daemon/fail_points.rs` crosses each of them
/// with a crash and with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The newest checkpoint has been read, at the start.
    Load,
    /// A decision or a notice is written with its deliveries and log entries; the transaction is open.
    Commit,
    /// It is committed; nobody has been told.
    Committed,
    /// A checkpoint is written; the transaction is open.
    Checkpoint,
    Checkpointed,
    /// The start of an attempt is written; the transaction is open.
    Claim,
    /// It is committed; nothing has been sent.
    Claimed,
    /// An attempt is about to connect. An error is a receiver that cannot be reached.
    Send,
    /// The receiver has answered; nothing is recorded. An error is an answer that is lost.
    Answer,
    /// What became of an attempt is written; the transaction is open.
    Record,
    Recorded,
    /// A delivery is given up, and who hears of that is written; the transaction is open.
    GiveUp,
}

pub const POINTS: [(&str, Point); 12] = [
    ("load", Point::Load),
    ("commit", Point::Commit),
    ("committed", Point::Committed),
    ("checkpoint", Point::Checkpoint),
    ("checkpointed", Point::Checkpointed),
    ("claim", Point::Claim),
    ("claimed", Point::Claimed),
    ("send", Point::Send),
    ("answer", Point::Answer),
    ("record", Point::Record),
    ("recorded", Point::Recorded),
    ("give_up", Point::GiveUp),
];

/// A step that failed because a test wanted it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fail point `{0:?}`")]
pub struct Failed(Point);

#[cfg(debug_assertions)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Crash,
    Error,
    Panic,
    /// Until standard input ends.
    Wait,
}

#[cfg(debug_assertions)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Armed {
    point: Point,
    what: What,
    /// How many times the place is passed before it happens.
    passes: u32,
}

/// What a simulation lets happen at a point: `true` is an error. It may unwind: that is a crash.
pub type Driver = Box<dyn FnMut(Point) -> bool>;

#[cfg(debug_assertions)]
thread_local! {
    static DRIVER: std::cell::RefCell<Option<Driver>> = const { std::cell::RefCell::new(None) };
}

/// Hands the points that this thread comes to over to a simulation; `None` ends that.
#[cfg(debug_assertions)]
pub fn drive(driver: Option<Driver>) {
    DRIVER.set(driver);
}

#[cfg(not(debug_assertions))]
pub fn drive(_: Option<Driver>) {}

#[cfg(debug_assertions)]
static ARMED: Mutex<Option<Armed>> = Mutex::new(None);

/// What happens at `point`: nothing, unless a test armed it.
///
/// # Errors
/// Where it is armed with `error`, and its time has come.
#[cfg(debug_assertions)]
pub fn at(point: Point) -> Result<(), Failed> {
    if DRIVER.with_borrow_mut(|driver| driver.as_mut().is_some_and(|driver| driver(point))) {
        return Err(Failed(point));
    }
    let mut slot = ARMED.lock().unwrap_or_else(|e| e.into_inner());
    let Some(armed) = slot.as_mut().filter(|armed| armed.point == point) else { return Ok(()) };
    if armed.passes > 0 {
        armed.passes -= 1;
        return Ok(());
    }
    let what = armed.what;
    *slot = None;
    drop(slot);
    match what {
        What::Crash => std::process::abort(),
        What::Error => Err(Failed(point)),
        #[allow(clippy::panic)] // that is what was asked for
        What::Panic => panic!("{}", Failed(point)),
        What::Wait => {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            Ok(())
        }
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn at(_: Point) -> Result<(), Failed> {
    Ok(())
}

/// Arms what `FAIL_POINT` asks for.
///
/// # Errors
/// A value that cannot be read.
#[cfg(debug_assertions)]
pub fn arm_from_environment() -> Result<(), String> {
    let Ok(text) = std::env::var("FAIL_POINT") else { return Ok(()) };
    let armed = parse(&text)
        .ok_or_else(|| format!("FAIL_POINT={text}: write POINT:crash or POINT:error[@N] (or panic, wait), as in src/fail.rs"))?;
    tracing::warn!("fail point armed: {text}");
    *ARMED.lock().unwrap_or_else(|e| e.into_inner()) = Some(armed);
    Ok(())
}

#[cfg(not(debug_assertions))]
pub fn arm_from_environment() -> Result<(), String> {
    Ok(())
}

#[cfg(debug_assertions)]
fn parse(text: &str) -> Option<Armed> {
    let (name, what) = text.split_once(':')?;
    let (_, point) = POINTS.iter().find(|(known, _)| *known == name)?;
    let (what, time) = what.split_once('@').unwrap_or((what, "1"));
    let what = match what {
        "crash" => What::Crash,
        "error" => What::Error,
        "panic" => What::Panic,
        "wait" => What::Wait,
        _ => return None,
    };
    Some(Armed { point: *point, what, passes: time.parse::<u32>().ok()?.checked_sub(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_refused() {
        let armed = |point, what, passes| Some(Armed { point, what, passes });
        assert_eq!(parse("commit:crash"), armed(Point::Commit, What::Crash, 0));
        assert_eq!(parse("give_up:error@3"), armed(Point::GiveUp, What::Error, 2));
        assert_eq!(parse("send:panic"), armed(Point::Send, What::Panic, 0));
        assert_eq!(parse("load:wait"), armed(Point::Load, What::Wait, 0));
        for bad in ["", "commit", "commit:", "commit:exit", "comit:crash", "commit:error@0", "commit:error@x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
