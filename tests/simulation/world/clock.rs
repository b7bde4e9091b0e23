//! Time of a world: it passes when the world says so, and when somebody sleeps.

use super::plan::TABLES;
use guardraild::clock::{Moment, Time};
use guardraild::engine::time::Millis;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

/// What a crash unwinds with.
pub struct Crash;

/// A disk that fails until some time: triggers in the database let the writes of tables fail.
struct Outage {
    until: Millis,
    database: std::path::PathBuf,
}

/// See the module.
pub struct Clock {
    /// ms since the beginning.
    at: AtomicI64,
    /// What the wall clock says at the beginning, and what it said then to the process that runs.
    wall: AtomicI64,
    steady: AtomicI64,
    outage: Mutex<Option<Outage>>,
    /// Whoever sleeps dies then.
    crash_at: AtomicI64,
}

impl Clock {
    pub fn new(wall: Millis) -> Clock {
        Clock {
            at: AtomicI64::new(0),
            wall: AtomicI64::new(wall),
            steady: AtomicI64::new(wall),
            outage: Mutex::new(None),
            crash_at: AtomicI64::new(Millis::MAX),
        }
    }

    pub fn at(&self) -> Millis {
        self.at.load(Relaxed)
    }

    pub fn pass(&self, span: Millis) {
        let at = self.at.fetch_add(span, Relaxed) + span;
        let mut outage = self.outage.lock().unwrap();
        // In the middle of a transaction, where time passes too, it cannot be done: a little later it can.
        outage.take_if(|o| at >= o.until && repair(&o.database).is_ok());
    }

    pub fn set(&self, by: Millis) {
        self.wall.fetch_add(by, Relaxed);
    }

    /// A process begins: its schedules go by the wall clock as it is now, whatever it is set to later.
    pub fn begin(&self) {
        self.steady.store(self.wall.load(Relaxed), Relaxed);
    }

    /// Lets writes fail until some time, those of one table or of all.
    pub fn fail_disk(&self, database: &Path, table: Option<&str>, until: Millis) {
        let fails = |table: &&str| {
            let fail = "BEGIN SELECT raise(ABORT, 'disk I/O error'); END";
            ["INSERT", "UPDATE", "DELETE"]
                .map(|verb| format!("CREATE TRIGGER IF NOT EXISTS world_{table}_{verb} BEFORE {verb} ON {table} {fail};"))
                .concat()
        };
        let sql: String = TABLES.iter().filter(|t| table.is_none_or(|table| table == **t)).map(fails).collect();
        rusqlite::Connection::open(database).and_then(|c| c.execute_batch(&sql)).unwrap();
        let mut outage = self.outage.lock().unwrap();
        let until = outage.as_ref().map_or(until, |o| o.until.max(until));
        *outage = Some(Outage { until, database: database.to_owned() });
    }

    pub fn disk_fails(&self) -> bool {
        self.outage.lock().unwrap().is_some()
    }

    pub fn crash_at(&self, at: Millis) {
        self.crash_at.store(at, Relaxed);
    }
}

fn repair(database: &Path) -> rusqlite::Result<()> {
    let connection = rusqlite::Connection::open(database)?;
    connection.busy_timeout(Duration::ZERO)?;
    let sql =
        "SELECT coalesce(group_concat('DROP TRIGGER ' || name, ';'), '') FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'world_%'";
    let drop: String = connection.query_row(sql, [], |row| row.get(0))?;
    connection.execute_batch(&drop)
}

impl Time for Clock {
    fn now(&self) -> Millis {
        self.wall.load(Relaxed) + self.at()
    }

    fn moment(&self) -> Moment {
        Moment { wall: self.now(), steady: self.steady.load(Relaxed) + self.at() }
    }

    fn steady(&self) -> Duration {
        Duration::from_millis(self.at().unsigned_abs())
    }

    fn sleep(&self, span: Duration) {
        self.pass(span.as_millis() as Millis);
        if self.at() >= self.crash_at.load(Relaxed) {
            std::panic::resume_unwind(Box::new(Crash));
        }
    }
}
