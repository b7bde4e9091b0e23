//! What of the configuration is taken up while the daemon runs: how endpoints are reached, with their secrets. Of the rest people are told.

use crate::config::{Config, ConfigErrors};
use crate::delivery::{Endpoint, Renewer};

/// Reads the configuration again, from the same layers as at the start.
pub type Reread = Box<dyn Fn() -> Result<Config, ConfigErrors> + Send + Sync>;

/// See the module.
pub struct Renewal {
    pub reread: Reread,
    /// What the daemon was started with.
    pub started: Config,
}

impl Renewal {
    /// Reads the configuration, and secrets, again. What came of it is in the log.
    pub fn renew(&self, endpoints: &Renewer) {
        let config = match (self.reread)() {
            Ok(config) => config,
            Err(errors) => return tracing::error!("the configuration has faults, and what was read before stays: {errors}"),
        };
        for (name, endpoint) in &config.endpoints {
            if self.started.endpoints.get(name).is_none_or(|before| before.kind != endpoint.kind) {
                continue;
            }
            match endpoints.renew(Endpoint::configured(name, endpoint, &config.delivery)) {
                Ok(true) => tracing::info!(endpoint = name, "the endpoint is reached by its new settings"),
                Ok(false) => {}
                Err(error) => tracing::error!("{error}; what was read before stays"),
            }
        }
        for section in need_restart(&self.started, &config) {
            tracing::warn!("`{section}` of the configuration has changed: that takes effect with a restart");
        }
    }
}

/// Sections that differ, and are read at the start alone. Secrets are not printed, and so not compared.
fn need_restart(before: &Config, now: &Config) -> Vec<&'static str> {
    let sections = |c: &Config| {
        let kinds: Vec<_> = c.endpoints.iter().map(|(name, endpoint)| (name, endpoint.kind)).collect();
        [
            ("state_dir", format!("{:?}", c.state_dir)),
            ("standby", format!("{:?}", c.standby)),
            ("rules", format!("{:?}", c.rules)),
            ("kafka", format!("{:?}", c.kafka)),
            ("engine", format!("{:?}", c.engine)),
            ("http", format!("{:?}", c.http)),
            ("endpoints", format!("{kinds:?}")),
            ("checkpoint", format!("{:?}", c.checkpoint)),
            ("reload", format!("{:?}", c.reload)),
            ("telemetry", format!("{:?}", c.telemetry)),
        ]
    };
    let both = sections(before).into_iter().zip(sections(now));
    both.filter(|((_, before), (_, now))| before != now).map(|((name, _), _)| name).collect()
}
