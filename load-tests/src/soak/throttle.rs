//! A daemon that gets a part of the time: SIGSTOP and SIGCONT in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// One turn of running and standing still: short beside every time-out of the daemon and of its broker.
const TURN: Duration = Duration::from_millis(500);

/// Lets the process run freely again when it is dropped.
pub struct Throttle {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    /// `duty`: share of the time, 0 (exclusive) to 1.
    pub fn start(pid: u32, duty: f64) -> std::io::Result<Throttle> {
        let end = Arc::new(AtomicBool::new(duty >= 1.0));
        let over = Arc::clone(&end);
        let thread = std::thread::Builder::new().name("throttle".into()).spawn(move || {
            while !over.load(Ordering::Relaxed) {
                signal(pid, libc::SIGSTOP);
                std::thread::sleep(TURN.mul_f64(1.0 - duty));
                signal(pid, libc::SIGCONT);
                std::thread::sleep(TURN.mul_f64(duty));
            }
        })?;
        Ok(Throttle { end, thread: Some(thread) })
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: no memory is involved; the process is our child, and not yet waited for, so the number is its own.
    unsafe {
        libc::kill(pid.cast_signed(), signal);
    }
}
