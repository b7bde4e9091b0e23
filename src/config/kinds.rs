//! The kinds of endpoints, and which settings each of them has.

/// What is spoken to the receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointKind {
    /// Standard Webhooks.
    #[default]
    Webhook,
    /// CloudEvents in structured mode, signed likewise.
    CloudEvents,
    /// PagerDuty Events v2.
    PagerDuty,
    /// A Slack incoming webhook, or with a token `chat.postMessage`.
    Slack,
    /// Alertmanager's v2 API, all members of a cluster.
    Alertmanager,
    /// LaunchDarkly's REST API: turns a flag off.
    LaunchDarkly,
    /// A LaunchDarkly flag trigger, whose address is all it takes.
    LaunchDarklyTrigger,
    /// Unleash's admin API: turns a flag off in an environment.
    Unleash,
    /// An Unleash signal endpoint.
    UnleashSignal,
    /// GrowthBook: turns a feature off in an environment.
    GrowthBook,
    /// GrowthBook: rolls back a ramp schedule, or pauses it.
    GrowthBookRamp,
    /// Flagsmith: turns a feature off in an environment.
    Flagsmith,
    /// Statsig's console API: disables a gate.
    Statsig,
    /// A file of flag definitions that flagd reads.
    Flagd,
    /// Argo Rollouts, by the Kubernetes API: aborts a rollout, or pauses it.
    ArgoRollouts,
    /// Whatever HTTP request its templates make.
    Template,
}

/// The settings of a kind, beside those that all have.
pub struct Form {
    pub kind: EndpointKind,
    pub name: &'static str,
    /// Where the product is unless `url` says otherwise.
    pub url: Option<&'static str>,
    pub needs: &'static [&'static str],
    pub takes: &'static [&'static str],
}

const fn form(kind: EndpointKind, name: &'static str, needs: &'static [&'static str], takes: &'static [&'static str]) -> Form {
    Form { kind, name, url: None, needs, takes }
}

const fn at(url: &'static str, form: Form) -> Form {
    Form { url: Some(url), ..form }
}

/// Where the Kubernetes API is, and what a pod knows of it.
pub const KUBERNETES: &str = "https://kubernetes.default.svc";
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

pub const FORMS: [Form; 16] = [
    form(EndpointKind::Webhook, "webhook", &["url", "secrets"], &[]),
    form(EndpointKind::CloudEvents, "cloudevents", &["url"], &["secrets"]),
    at("https://events.pagerduty.com/v2/enqueue", form(EndpointKind::PagerDuty, "pagerduty", &["routing_key"], &["url"])),
    at("https://slack.com/api/chat.postMessage", form(EndpointKind::Slack, "slack", &[], &["url", "token", "channel"])),
    form(EndpointKind::Alertmanager, "alertmanager", &["urls"], &[]),
    at(
        "https://app.launchdarkly.com",
        form(EndpointKind::LaunchDarkly, "launchdarkly", &["token"], &["url", "flag", "project", "environment"]),
    ),
    form(EndpointKind::LaunchDarklyTrigger, "launchdarkly_trigger", &["url"], &[]),
    form(EndpointKind::Unleash, "unleash", &["url", "token"], &["flag", "project", "environment"]),
    form(EndpointKind::UnleashSignal, "unleash_signal", &["url", "token"], &["signal"]),
    at("https://api.growthbook.io", form(EndpointKind::GrowthBook, "growthbook", &["token"], &["url", "flag", "environment"])),
    at("https://api.growthbook.io", form(EndpointKind::GrowthBookRamp, "growthbook_ramp", &["token"], &["url", "ramp"])),
    at("https://api.flagsmith.com", form(EndpointKind::Flagsmith, "flagsmith", &["token"], &["url", "flag", "environment"])),
    at("https://statsigapi.net", form(EndpointKind::Statsig, "statsig", &["token"], &["url", "flag"])),
    form(EndpointKind::Flagd, "flagd", &["file"], &["flag", "serve"]),
    at(KUBERNETES, form(EndpointKind::ArgoRollouts, "argo_rollouts", &[], &["url", "token_file", "namespace", "rollout"])),
    form(
        EndpointKind::Template,
        "template",
        &["url"],
        &["method", "content_type", "body", "success", "flag", "project", "environment", "serve"],
    ),
];

/// What `kind` may say.
pub static NAMES: [(&str, EndpointKind); FORMS.len()] = {
    let mut names = [("", EndpointKind::Webhook); FORMS.len()];
    let mut i = 0;
    while i < FORMS.len() {
        names[i] = (FORMS[i].name, FORMS[i].kind);
        i += 1;
    }
    names
};

/// The settings of one kind or another, and of those that speak HTTP.
pub const OF_SOME: [&str; 20] = [
    "url",
    "urls",
    "secrets",
    "routing_key",
    "token",
    "token_file",
    "channel",
    "file",
    "method",
    "content_type",
    "body",
    "success",
    "flag",
    "project",
    "environment",
    "serve",
    "signal",
    "ramp",
    "namespace",
    "rollout",
];
pub const OF_HTTP: [&str; 3] = ["headers", "ca_file", "allow_link_local"];
/// Those that the body of a rule may give, too, and then decides.
pub const TEXTS: [&str; 9] = ["flag", "project", "environment", "serve", "signal", "ramp", "namespace", "rollout", "channel"];

impl EndpointKind {
    pub fn form(self) -> &'static Form {
        FORMS.iter().find(|form| form.kind == self).unwrap_or(&FORMS[0])
    }

    pub fn name(self) -> &'static str {
        self.form().name
    }

    pub fn speaks_http(self) -> bool {
        self != EndpointKind::Flagd
    }

    /// Whether it signs with the endpoint's secrets.
    pub fn signs(self) -> bool {
        matches!(self, EndpointKind::Webhook | EndpointKind::CloudEvents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_a_form_is_known_and_every_kind_has_one_form() {
        for form in &FORMS {
            assert_eq!(FORMS.iter().filter(|other| other.kind == form.kind || other.name == form.name).count(), 1, "{}", form.name);
            assert!(form.needs.iter().chain(form.takes).all(|key| OF_SOME.contains(key)), "{}", form.name);
        }
        assert!(OF_SOME.iter().all(|key| FORMS.iter().any(|form| form.needs.contains(key) || form.takes.contains(key))));
        assert!(TEXTS.iter().all(|key| OF_SOME.contains(key)));
    }

    #[test]
    fn every_kind_and_every_setting_is_documented() {
        let (settings, kinds) = (include_str!("../../config/default.yaml"), include_str!("../../docs/endpoints.md"));
        for key in OF_SOME.iter().chain(&OF_HTTP) {
            assert!(settings.contains(&format!("\n#     {key}: ")), "config/default.yaml says nothing of `{key}`");
        }
        for form in &FORMS {
            assert!(settings.contains(form.name) && kinds.contains(&format!("kind: {}", form.name)), "`{}` has no example", form.name);
        }
    }
}
