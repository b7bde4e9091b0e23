//! What a readout needs after the fact: how each experiment's figures went, and how they stood at last.

use super::{Failure, Store, StoreError};
use crate::engine::time::Millis;
use rusqlite::{OptionalExtension, Row, params};

/// An experiment's figures at one moment, as JSON text whose form is the writer's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPoint {
    /// Event time, ms since the epoch.
    pub at: Millis,
    pub body: String,
}

/// How an experiment stood when it was last looked at closely, in one revision of its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub experiment: String,
    pub revision: u32,
    /// Wall clock, ms since the epoch.
    pub at: Millis,
    /// Nothing of it will change any more.
    pub last: bool,
    /// The rule file's text.
    pub rule: String,
    /// The state as the API shows it, and histograms, as JSON text.
    pub body: String,
}

/// What one look at an experiment leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    pub experiment: String,
    pub revision: u32,
    pub point: Option<StoredPoint>,
    pub summary: Option<NewSummary>,
}

/// A [`Summary`] to be: the rule's text is that which is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSummary {
    pub at: Millis,
    pub last: bool,
    pub body: String,
}

impl Store {
    /// Writes down what was seen. Of an experiment's points at most `most` are kept: where there are more, every second one of the older three
    /// quarters goes, so that what is recent is fine and the beginning stays. A summary replaces the one of its revision.
    pub fn remember(&mut self, looks: &[Look], most: u32) -> Result<(), StoreError> {
        self.write(|tx| {
            for (experiment, point) in looks.iter().filter_map(|look| Some((&look.experiment, look.point.as_ref()?))) {
                tx.prepare_cached("INSERT INTO points (experiment, at, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")?
                    .execute(params![experiment, point.at, point.body])?;
                let n: u32 =
                    tx.prepare_cached("SELECT count(*) FROM points WHERE experiment = ?")?.query_row([experiment], |row| row.get(0))?;
                if n > most {
                    tx.prepare_cached(
                        "DELETE FROM points WHERE experiment = ?1 AND at IN (SELECT at FROM
                             (SELECT at, row_number() OVER (ORDER BY at) AS place FROM points WHERE experiment = ?1)
                         WHERE place <= ?2 AND place % 2 = 0)",
                    )?
                    .execute(params![experiment, n / 4 * 3])?;
                }
            }
            for (look, summary) in looks.iter().filter_map(|look| Some((look, look.summary.as_ref()?))) {
                tx.prepare_cached(
                    "INSERT OR REPLACE INTO summaries (experiment, revision, at, last, rule, body)
                     VALUES (?1, ?2, ?3, ?4, coalesce((SELECT text FROM rules WHERE experiment = ?1), ''), ?5)",
                )?
                .execute(params![look.experiment, look.revision, summary.at, summary.last, summary.body])?;
            }
            Ok(())
        })
    }

    /// An experiment's points, oldest first.
    pub fn points(&self, experiment: &str) -> Result<Vec<StoredPoint>, StoreError> {
        self.read(|c| {
            let point = |row: &Row<'_>| Ok(StoredPoint { at: row.get(0)?, body: row.get(1)? });
            c.prepare_cached("SELECT at, body FROM points WHERE experiment = ? ORDER BY at")?.query_map([experiment], point)?.collect()
        })
    }

    /// How an experiment stood in its newest revision, or in this one.
    pub fn summary(&self, experiment: &str, revision: Option<u32>) -> Result<Option<Summary>, StoreError> {
        self.read(|c| {
            let sql = "SELECT * FROM summaries WHERE experiment = ?1 AND (?2 IS NULL OR revision = ?2) ORDER BY at DESC LIMIT 1";
            c.prepare_cached(sql)?.query_row(params![experiment, revision], summary).optional()
        })
    }

    /// Names of the experiments that were ever looked at, or whose log has entries, and are not forgotten.
    pub fn remembered(&self) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT experiment FROM summaries UNION SELECT experiment FROM log WHERE experiment <> '' ORDER BY experiment";
        self.read(|c| c.prepare_cached(sql)?.query_map([], |row| row.get(0))?.collect())
    }

    /// Deletes what is kept of experiments that are not among `live` and of which nothing is newer than `before`: points, summaries, log
    /// and finished deliveries with their attempts. Returns their names. Decisions stay: they keep a replay from acting twice, and there is
    /// at most one for each guardrail, bucket, revision and arming.
    pub fn forget(&mut self, before: Millis, live: &[String]) -> Result<Vec<String>, StoreError> {
        let live = serde_json::to_string(live)?;
        self.write(|tx| {
            let sql = "SELECT experiment FROM (SELECT experiment, at FROM log UNION ALL SELECT experiment, at FROM summaries)
                 WHERE experiment NOT IN (SELECT value FROM json_each(?1)) GROUP BY experiment HAVING max(at) < ?2 ORDER BY experiment";
            let names: Vec<String> =
                tx.prepare_cached(sql)?.query_map(params![live, before], |row| row.get(0))?.collect::<Result<_, _>>()?;
            for name in &names {
                for table in ["points", "summaries", "log"] {
                    tx.execute(&format!("DELETE FROM {table} WHERE experiment = ?"), [name])?;
                }
                tx.execute("DELETE FROM outbox WHERE state <> 'pending' AND experiment = ?", [name])?;
            }
            Ok::<_, Failure>(names)
        })
    }
}

fn summary(row: &Row<'_>) -> rusqlite::Result<Summary> {
    Ok(Summary {
        experiment: row.get("experiment")?,
        revision: row.get("revision")?,
        at: row.get("at")?,
        last: row.get("last")?,
        rule: row.get("rule")?,
        body: row.get("body")?,
    })
}
