//! Argo Rollouts: two AnalysisTemplates that read the verdict by the `web` provider.

use super::document::quoted;
use crate::cli::client::encoded;
use crate::rules::RuleSet;
use std::fmt::{Result, Write};

pub fn write(out: &mut String, rule: &RuleSet, name: &str, url: &str) -> Result {
    out.write_str(
        "# Needs Argo Rollouts 1.8 or newer (consecutiveSuccessLimit). The secret holds a token of the role `read`:
#   kubectl create secret generic guardraild-read-token --from-file=token=…
---
# For `strategy.canary.analysis`, in the background: ends the rollout as soon as a bucket is stopped, and nothing else does.
# While the daemon does not answer, each measurement is an error and comes again after 10 s; 60 of them in a row end it, too.
",
    )?;
    head(out, rule, &format!("{name}-watch"), url)?;
    out.write_str("    - name: stop\n      interval: 30s\n      failureCondition: result.stop\n")?;
    provider(out)?;
    out.write_str(
        "---
# For an `analysis` step: the rollout goes on once the daemon has said \"go\" twice in a row. \"Not yet\" (too little data, none, stale
# data, a hold) is inconclusive; after an hour of it (`count`) the rollout pauses for a person. \"Stop\" ends the rollout.
",
    )?;
    head(out, rule, &format!("{name}-go"), url)?;
    out.write_str(
        "    - name: go
      interval: 30s
      count: 120
      consecutiveSuccessLimit: 2
      successCondition: result.go
      failureCondition: result.stop
      inconclusiveLimit: 120
",
    )?;
    provider(out)
}

fn head(out: &mut String, rule: &RuleSet, name: &str, url: &str) -> Result {
    // A part of an address.
    let experiment = quoted(&encoded(&rule.plan.experiment));
    write!(
        out,
        "apiVersion: argoproj.io/v1alpha1
kind: AnalysisTemplate
metadata:
  name: {name}
spec:
  args:
    - {{name: experiment, value: {experiment}}}
    - {{name: guardraild, value: {}}}
    - name: token
      valueFrom: {{secretKeyRef: {{name: guardraild-read-token, key: token}}}}
  metrics:
",
        quoted(url)
    )
}

fn provider(out: &mut String) -> Result {
    out.write_str(
        "      consecutiveErrorLimit: 60
      provider:
        web:
          url: \"{{args.guardraild}}/api/v1/experiments/{{args.experiment}}/verdict\"
          headers:
            - {key: Authorization, value: \"Bearer {{args.token}}\"}
",
    )
}
