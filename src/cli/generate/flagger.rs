//! Flagger: the webhooks of a Canary, as a patch for it.

use super::document::quoted;
use crate::rules::RuleSet;
use std::fmt::{Result, Write};

pub fn write(out: &mut String, rule: &RuleSet, name: &str, url: &str) -> Result {
    let experiment = quoted(&rule.plan.experiment);
    out.write_str(
        "# A patch for a Canary (kustomize: `patches`, with a `target` where its name is another). Flagger sends no headers: where reads need
# a token, write one of the role `read` into the addresses, http://flagger:TOKEN@…
",
    )?;
    write!(
        out,
        "apiVersion: flagger.app/v1beta1
kind: Canary
metadata:
  name: {name}
spec:
  analysis:
    webhooks:
"
    )?;
    let mut hook = |kind: &str, path: &str, why: &str| {
        write!(
            out,
            "      # {why}
      - name: guardraild-{kind}
        type: {kind}
        url: {}
        timeout: 10s
        retries: 2
        metadata: {{experiment: {experiment}}}
",
            quoted(&format!("{url}/hooks/flagger/{path}"))
        )
    };
    hook("rollback", "rollback", "200 once a bucket is stopped: Flagger rolls back at once.")?;
    hook(
        "rollout",
        "confirm",
        "403 while the daemon does not say \"go\": the weight stays, and a check has failed. `threshold` failed checks roll back.",
    )?;
    hook("confirm-promotion", "confirm", "403 keeps the canary from promotion, for as long as it takes.")
}
