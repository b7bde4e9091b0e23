//! What a sweep changes: `margin=5%,10%`, `latency_p95.window=5m,10m`.

use crate::engine::plan::{Guardrail, Margin, Plan};
use crate::engine::time::Millis;
use crate::rules::diagnostic::{nearest, quote};
use crate::rules::quantity::{Quantity, percent};
use crate::tools::simulate::traffic::metric_name;

/// What can be swept, and an example of its values.
const KEYS: [(&str, &str); 6] = [
    ("margin", "5%,10%,20%"),
    ("limit", "300ms,400ms"),
    ("window", "5m,10m,30m"),
    ("alpha", "0.01,0.05"),
    ("min_units", "100,1000"),
    ("traffic", "10%,50%,100%"),
];
/// Longest window of a rule file, ms.
const WINDOW_MAX: Millis = 7 * 86_400_000;

/// A key of the rule file, or the traffic, and the values to try.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// As it was written.
    pub name: String,
    pub settings: Vec<Setting>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// As it was written.
    pub text: String,
    change: Change,
    /// Guardrails that it is of, by their places in the plan.
    guardrails: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Margin(Margin),
    Limit(f64),
    Window(Millis),
    Alpha(f64),
    MinUnits(u64),
    /// Share of the units.
    Traffic(f64),
}

impl Axis {
    /// Parses `KEY=VALUE,VALUE` and `GUARDRAIL.KEY=VALUE,VALUE`; without a guardrail all are meant that have the key.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn parse(text: &str, plan: &Plan) -> Result<Axis, String> {
        let (name, values) =
            text.split_once('=').ok_or_else(|| format!("{}: write KEY=VALUE,VALUE, such as margin=5%,10%,20%", quote(text)))?;
        let (of, key) = name.rsplit_once('.').map_or((None, name), |(of, key)| (Some(of), key));
        let Some((_, example)) = KEYS.iter().find(|(known, _)| *known == key) else {
            let keys = || KEYS.iter().map(|(key, _)| *key);
            let near = nearest(key, keys()).map_or_else(String::new, |near| format!("did you mean {}? ", quote(near)));
            return Err(format!("{} cannot be swept; {near}It can be {}", quote(key), keys().collect::<Vec<_>>().join(", ")));
        };
        let values: Vec<&str> = values.split(',').map(str::trim).filter(|value| !value.is_empty()).collect();
        if let Some(twice) = values.iter().enumerate().find(|(i, value)| values[..*i].contains(value)) {
            return Err(format!("{name}: {} is there twice", quote(twice.1)));
        }
        if values.is_empty() {
            return Err(format!("{name} has no values; write {name}={example}"));
        }
        let settings = values.iter().map(|value| Setting::parse((key, example), of, value, plan)).collect::<Result<_, _>>()?;
        Ok(Axis { name: name.to_owned(), settings })
    }

    /// Metrics of the guardrails that it changes; of none where it changes them all alike.
    pub fn metrics<'p>(&self, plan: &'p Plan) -> Vec<&'p str> {
        let places = self.settings.first().map_or(&[][..], |setting| &setting.guardrails);
        places.iter().map(|index| metric_name(&plan.guardrails[*index].name)).collect()
    }
}

impl Setting {
    fn parse((key, example): (&str, &str), of: Option<&str>, text: &str, plan: &Plan) -> Result<Setting, String> {
        let bad = |why: &str| format!("{key}: {} {why}; write {key}={example}", quote(text));
        let quantity = Quantity::parse(text);
        let change = match key {
            "margin" => match quantity {
                Some(Quantity::Percent(share)) if share >= 0.0 => Some(Change::Margin(Margin::Relative(share))),
                Some(Quantity::Points(points) | Quantity::Span(points)) if points >= 0.0 => Some(Change::Margin(Margin::Absolute(points))),
                _ => None,
            },
            "limit" => match quantity {
                Some(Quantity::Percent(v) | Quantity::Span(v) | Quantity::Number(v)) if v >= 0.0 => Some(Change::Limit(v)),
                _ => None,
            },
            "window" => match quantity {
                Some(Quantity::Span(ms)) if ms >= 1.0 && ms as Millis <= WINDOW_MAX => Some(Change::Window(ms as Millis)),
                _ => None,
            },
            "alpha" => match quantity {
                Some(Quantity::Number(a) | Quantity::Percent(a)) if a > 0.0 && a < 1.0 => Some(Change::Alpha(a)),
                _ => None,
            },
            "min_units" => text.parse().ok().map(Change::MinUnits),
            _ => percent(text).filter(|share| *share > 0.0).map(Change::Traffic),
        };
        let change = change.ok_or_else(|| bad("is no such value"))?;
        let mut setting = Setting { text: text.to_owned(), change, guardrails: Vec::new() };
        if !matches!(key, "margin" | "limit" | "window") {
            return if of.is_some() { Err(format!("{key} is of the whole rule file, not of a guardrail")) } else { Ok(setting) };
        }
        let named = |g: &Guardrail| of.is_none_or(|of| g.name == of || metric_name(&g.name) == of);
        setting.guardrails =
            (0..plan.guardrails.len()).filter(|i| named(&plan.guardrails[*i]) && setting.fits(&plan.guardrails[*i])).collect();
        match (setting.guardrails.is_empty(), of) {
            (false, _) => Ok(setting),
            (true, Some(of)) if !plan.guardrails.iter().any(named) => {
                let near =
                    nearest(of, plan.guardrails.iter().map(|g| g.name.as_str())).map(|near| format!("; did you mean {}?", quote(near)));
                Err(format!("no guardrail is called {}{}", quote(of), near.unwrap_or_default()))
            }
            (true, _) => Err(bad(match key {
                "margin" => "fits no guardrail with a `max_increase` of that unit",
                _ => "fits no guardrail with a `limit` of that unit",
            })),
        }
    }

    /// Whether a guardrail has what is changed, in the unit of the value. `success.primary` is not a guardrail's margin.
    fn fits(&self, g: &Guardrail) -> bool {
        let in_unit = |quantity: Option<Quantity>| match (quantity, g.unit.as_str()) {
            (Some(Quantity::Percent(_)), unit) => unit == "%",
            (Some(Quantity::Span(_)), unit) => unit == "ms",
            (Some(Quantity::Points(_)), unit) => unit == "%",
            (Some(Quantity::Number(_)), unit) => unit != "%" && unit != "ms",
            (None, _) => false,
        };
        match self.change {
            Change::Margin(_) if g.primary => false,
            Change::Margin(Margin::Relative(_)) => g.max_increase.is_some(),
            Change::Margin(Margin::Absolute(_)) => g.max_increase.is_some() && in_unit(Quantity::parse(&self.text)),
            Change::Limit(_) => g.limit.is_some() && in_unit(Quantity::parse(&self.text)),
            _ => true,
        }
    }

    /// Changes a plan; returns by what the traffic is multiplied.
    pub fn apply(&self, plan: &mut Plan) -> f64 {
        match self.change {
            Change::Alpha(alpha) => plan.alpha = alpha,
            Change::MinUnits(units) => plan.min_units = units,
            Change::Traffic(share) => return share,
            Change::Margin(_) | Change::Limit(_) | Change::Window(_) => {}
        }
        for index in &self.guardrails {
            let g = &mut plan.guardrails[*index];
            match self.change {
                Change::Margin(margin) => g.max_increase = Some(margin),
                Change::Limit(limit) => g.limit = Some(limit),
                Change::Window(window) => g.window = window,
                _ => {}
            }
        }
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::parse_str;

    #[test]
    fn axes_are_parsed_in_the_units_of_what_they_change() {
        let text = std::fs::read_to_string("rules/new-checkout.yaml").unwrap();
        let plan = parse_str("r", &text, &mut Default::default(), None).rule.unwrap().plan;
        let margins = Axis::parse("latency_p95.margin=5%, 20ms", &plan).unwrap();
        assert_eq!(
            margins.settings.iter().map(|s| s.change).collect::<Vec<_>>(),
            [Change::Margin(Margin::Relative(0.05)), Change::Margin(Margin::Absolute(20.0))]
        );
        assert_eq!(margins.metrics(&plan), ["latency_p95"]);
        let mut changed = Plan::clone(&plan);
        assert_eq!(margins.settings[0].apply(&mut changed), 1.0);
        let of = |plan: &Plan, name: &str| {
            plan.guardrails.iter().filter(|g| metric_name(&g.name) == name).map(|g| g.max_increase).collect::<Vec<_>>()
        };
        assert!(of(&changed, "latency_p95").contains(&Some(Margin::Relative(0.05))) && of(&changed, "tickets") == of(&plan, "tickets"));
        assert_eq!(Axis::parse("traffic=10%,100%", &plan).unwrap().settings[0].apply(&mut changed), 0.1);
        for (bad, why) in [
            ("margin", "write KEY=VALUE,VALUE"),
            ("margins=5%", "did you mean `margin`?"),
            ("margin=", "has no values"),
            ("margin=5%,5%", "twice"),
            ("margin=fast", "no such value"),
            ("alpha=5", "no such value"),
            ("latency_p59.margin=5%", "did you mean `latency_p95`?"),
            ("latency_p95.alpha=0.1", "of the whole rule file"),
            ("latency_p95.margin=1pp", "fits no guardrail"),
        ] {
            assert!(Axis::parse(bad, &plan).unwrap_err().contains(why), "{bad}: {:?}", Axis::parse(bad, &plan));
        }
    }
}
