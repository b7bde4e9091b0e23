//! The requests of products that turn flags off and take rollouts back: templates, like those of users.

use super::endpoint::{Endpoint, Kind};
use super::template::{self, Text, Unfit};
use crate::store::Delivery;
use reqwest::header::{AUTHORIZATION, HeaderName};
use reqwest::{Method, Url};
use secrecy::ExposeSecret;
use serde_json::{Map, Value};

/// A product's API.
struct Preset {
    kind: Kind,
    /// Of every request.
    headers: &'static [(&'static str, &'static str)],
    /// What must be known of the flag.
    needs: &'static [&'static str],
    /// For rollbacks and kills.
    stop: Recipe,
    pause: Option<Recipe>,
    /// Changes nothing: for `guardrail.test`.
    look: Option<Recipe>,
}

/// A request in templates.
struct Recipe {
    method: Method,
    /// What follows the endpoint's address.
    path: &'static str,
    content_type: &'static str,
    body: &'static str,
    /// What must hold of an answer with 2xx.
    success: &'static str,
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const OK: &str = "status == 200";

const fn get(path: &'static str) -> Recipe {
    Recipe { method: Method::GET, path, content_type: "", body: "", success: OK }
}

const fn send(method: Method, path: &'static str, body: &'static str, success: &'static str) -> Recipe {
    Recipe { method, path, content_type: if body.is_empty() { "" } else { JSON }, body, success }
}

const fn patch(content_type: &'static str, path: &'static str, body: &'static str, success: &'static str) -> Recipe {
    Recipe { method: Method::PATCH, path, content_type, body, success }
}

static PRESETS: [Preset; 9] = [
    Preset {
        kind: Kind::LaunchDarkly,
        headers: &[],
        needs: &["project", "flag", "environment"],
        stop: patch(
            "application/json; domain-model=launchdarkly.semanticpatch",
            "/api/v2/flags/{{ project }}/{{ flag }}",
            r#"{"environmentKey": {{ environment }}, "comment": {{ comment }}, "instructions": [{"kind": "turnFlagOff"}]}"#,
            "status == 200 and not answer.environments[environment].on",
        ),
        pause: None,
        look: Some(get("/api/v2/flags/{{ project }}/{{ flag }}?env={{ environment }}")),
    },
    Preset {
        kind: Kind::LaunchDarklyTrigger,
        headers: &[],
        needs: &[],
        stop: send(Method::POST, "", "{}", "status in [200, 202]"),
        pause: None,
        look: None,
    },
    Preset {
        kind: Kind::Unleash,
        headers: &[],
        needs: &["project", "flag", "environment"],
        stop: send(Method::POST, "/api/admin/projects/{{ project }}/features/{{ flag }}/environments/{{ environment }}/off", "", OK),
        pause: None,
        look: Some(get("/api/admin/projects/{{ project }}/features/{{ flag }}/environments/{{ environment }}")),
    },
    Preset {
        kind: Kind::UnleashSignal,
        headers: &[],
        needs: &["signal"],
        stop: send(Method::POST, "/api/signal-endpoint/{{ signal }}", "{{ message }}", "true"),
        pause: Some(send(Method::POST, "/api/signal-endpoint/{{ signal }}", "{{ message }}", "true")),
        look: None,
    },
    Preset {
        kind: Kind::GrowthBook,
        headers: &[],
        needs: &["flag", "environment"],
        stop: send(
            Method::POST,
            "/api/v2/features/{{ flag }}/toggle",
            r#"{"reason": {{ comment }}, "environments": { {{ environment }}: false }}"#,
            "status == 200 and not answer.feature.environments[environment].enabled",
        ),
        pause: None,
        look: Some(get("/api/v2/features/{{ flag }}")),
    },
    Preset {
        kind: Kind::GrowthBookRamp,
        headers: &[],
        needs: &["ramp"],
        stop: send(Method::POST, "/api/v1/ramp-schedules/{{ ramp }}/actions/rollback", r#"{"reason": {{ comment }}}"#, OK),
        pause: Some(send(Method::POST, "/api/v1/ramp-schedules/{{ ramp }}/actions/pause", "", OK)),
        look: Some(get("/api/v1/ramp-schedules/{{ ramp }}")),
    },
    Preset {
        kind: Kind::Flagsmith,
        headers: &[],
        needs: &["environment", "flag"],
        stop: send(
            Method::PATCH,
            "/api/__future__/environments/{{ environment }}/features/{{ flag }}/",
            r#"{"environment_default": {"enabled": false}}"#,
            "status == 200 and not answer.environment_default.enabled",
        ),
        pause: None,
        look: Some(get("/api/__future__/environments/{{ environment }}/features/{{ flag }}/")),
    },
    Preset {
        kind: Kind::Statsig,
        headers: &[("statsig-api-version", "20240601")],
        needs: &["flag"],
        stop: send(Method::PUT, "/console/v1/gates/{{ flag }}/disable", "", "status == 200 and not answer.data.isEnabled"),
        pause: None,
        look: Some(get("/console/v1/gates/{{ flag }}")),
    },
    Preset {
        kind: Kind::ArgoRollouts,
        headers: &[("accept", JSON)],
        needs: &["namespace", "rollout"],
        stop: patch(
            MERGE,
            "/apis/argoproj.io/v1alpha1/namespaces/{{ namespace }}/rollouts/{{ rollout }}/status",
            r#"{"status": {"abort": true}}"#,
            OK,
        ),
        pause: Some(patch(
            MERGE,
            "/apis/argoproj.io/v1alpha1/namespaces/{{ namespace }}/rollouts/{{ rollout }}",
            r#"{"spec": {"paused": true}}"#,
            OK,
        )),
        look: Some(get("/apis/argoproj.io/v1alpha1/namespaces/{{ namespace }}/rollouts/{{ rollout }}")),
    },
];

/// A request that is made of templates.
#[derive(Debug)]
pub(super) struct Made {
    pub method: Method,
    pub url: Url,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
    /// An expression that must hold of an answer with 2xx, and what it may name.
    pub success: Option<(String, Map<String, Value>)>,
}

/// How a product wants to be told who calls: a header, and what comes before the token in it.
pub(super) fn auth(kind: Kind) -> (HeaderName, &'static str) {
    match kind {
        Kind::LaunchDarkly | Kind::Unleash => (AUTHORIZATION, ""),
        Kind::Flagsmith => (AUTHORIZATION, "Api-Key "),
        Kind::Statsig => (HeaderName::from_static("statsig-api-key"), ""),
        _ => (AUTHORIZATION, "Bearer "),
    }
}

/// The request for a message, of a product or of a user's template; `None` for kinds that are neither.
pub(super) fn made(endpoint: &Endpoint, base: &Url, delivery: &Delivery) -> Option<Result<Made, Unfit>> {
    if let Some(template) = &endpoint.template {
        if delivery.event_type == "guardrail.test" {
            return Some(Err(no_look(endpoint.kind)));
        }
        let values = template::values(endpoint, delivery);
        let method = template.method.parse().unwrap_or(Method::POST);
        let source = endpoint.url.expose_secret();
        let parts = Parts { method, source, content_type: &template.content_type, body: &template.body, headers: &[] };
        return Some(parts.fill(base, values, template.success.clone()));
    }
    let preset = PRESETS.iter().find(|preset| preset.kind == endpoint.kind)?;
    Some(preset.made(endpoint, base, delivery))
}

fn no_look(kind: Kind) -> Unfit {
    Unfit(format!("kind `{}` has no request that changes nothing: `--as rollback --dry-run` shows what it would send", kind.name()))
}

impl Preset {
    fn made(&self, endpoint: &Endpoint, base: &Url, delivery: &Delivery) -> Result<Made, Unfit> {
        let (acts, recipe) = match delivery.event_type.as_str() {
            "guardrail.rollback" | "guardrail.kill" => (true, Some(&self.stop)),
            "guardrail.pause" => (true, self.pause.as_ref()),
            "guardrail.test" => (false, self.look.as_ref()),
            _ => (true, None),
        };
        let kind = self.kind.name();
        let recipe = recipe.ok_or_else(|| {
            let pauses = if self.pause.is_some() { "rollback, kill and pause" } else { "rollback and kill" };
            match acts {
                true => Unfit(format!("{} means nothing to kind `{kind}`, which acts on {pauses}", delivery.event_type)),
                false => no_look(self.kind),
            }
        })?;
        let values = template::values(endpoint, delivery);
        if let Some(missing) = self.needs.iter().find(|need| !values.contains_key(**need)) {
            return Err(Unfit::unknown(missing));
        }
        let source = format!("{}{}", endpoint.url.expose_secret().trim_end_matches('/'), recipe.path);
        let method = recipe.method.clone();
        let parts = Parts { method, source: &source, content_type: recipe.content_type, body: recipe.body, headers: self.headers };
        parts.fill(base, values, Some(recipe.success.to_owned()))
    }
}

struct Parts<'a> {
    method: Method,
    source: &'a str,
    content_type: &'a str,
    body: &'a str,
    headers: &'static [(&'static str, &'static str)],
}

impl Parts<'_> {
    fn fill(self, base: &Url, values: Map<String, Value>, success: Option<String>) -> Result<Made, Unfit> {
        let address = template::render(self.source, Text::Address, &values)?;
        let url = Url::parse(&address).map_err(|e| Unfit(format!("the template of its url makes no address: {e}")))?;
        if url.origin() != base.origin() {
            return Err(Unfit("the template of its url leads to another host".into()));
        }
        let body = template::render(self.body, Text::of(self.content_type), &values)?;
        let content_type = (!self.content_type.is_empty()).then(|| ("content-type", self.content_type.to_owned()));
        let own = self.headers.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let headers = content_type.into_iter().chain(own).collect();
        Ok(Made { method: self.method, url, headers, body, success: success.map(|expression| (expression, values)) })
    }
}
