//! Who may take part: the rule's population and exclusions, asked of every exposure.

use super::event::Event;
use std::collections::BTreeSet;
use std::fmt;

/// What is known of a unit that a rule can ask for.
#[derive(Clone, Debug, PartialEq)]
pub enum Trait {
    Tenant,
    User,
    /// An entry of `attributes`.
    Attribute(String),
}

impl Trait {
    /// The name of the attribute that it is.
    pub fn attribute(&self) -> Option<&str> {
        if let Trait::Attribute(name) = self { Some(name) } else { None }
    }

    fn of<'e>(&self, event: &'e Event<'_>) -> Option<&'e str> {
        match self {
            Trait::Tenant => event.tenant_id.as_deref(),
            Trait::User => event.user_id.as_deref(),
            Trait::Attribute(name) => event.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_ref()),
        }
    }
}

impl fmt::Display for Trait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trait::Tenant => f.write_str("tenant_id"),
            Trait::User => f.write_str("user_id"),
            Trait::Attribute(name) => f.write_str(name),
        }
    }
}

/// See the module. Empty lists ask for nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Eligibility {
    /// A unit must have one of the values of each.
    pub population: Vec<(Trait, BTreeSet<String>)>,
    /// A unit that has one of the values of any must not take part.
    pub exclude: Vec<(Trait, BTreeSet<String>)>,
}

/// What an exposure says of its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Eligible<'r> {
    Yes,
    /// The population asks for what the exposure does not tell.
    Unknown,
    /// It is excluded by this value.
    Excluded(&'r Trait, &'r str),
    /// This is none of the population's.
    Outside(&'r Trait),
}

impl Eligibility {
    pub fn asks(&self) -> bool {
        !self.population.is_empty() || !self.exclude.is_empty()
    }

    pub fn asks_for_attributes(&self) -> bool {
        self.population.iter().chain(&self.exclude).any(|(what, _)| what.attribute().is_some())
    }

    /// An exclusion outranks the population; of what an exposure does not tell, no exclusion is supposed.
    pub fn judge(&self, event: &Event<'_>) -> Eligible<'_> {
        if let Some((what, value)) = self.exclude.iter().find_map(|(what, values)| Some((what, values.get(what.of(event)?)?))) {
            return Eligible::Excluded(what, value);
        }
        let outside = |(what, values): &&(Trait, BTreeSet<String>)| what.of(event).is_some_and(|value| !values.contains(value));
        if let Some((what, _)) = self.population.iter().find(outside) {
            return Eligible::Outside(what);
        }
        match self.population.iter().all(|(what, _)| what.of(event).is_some()) {
            true => Eligible::Yes,
            false => Eligible::Unknown,
        }
    }
}

impl Eligible<'_> {
    pub fn is_ineligible(self) -> bool {
        matches!(self, Eligible::Excluded(..) | Eligible::Outside(_))
    }
}

/// In the words of the rule alone: a unit's own values are not shown, nor any user's id.
impl fmt::Display for Eligible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Eligible::Yes => f.write_str("eligible"),
            Eligible::Unknown => f.write_str("not known to be eligible"),
            Eligible::Excluded(Trait::User, _) => f.write_str("its user_id is excluded"),
            Eligible::Excluded(what, value) => write!(f, "its {what} {value} is excluded"),
            Eligible::Outside(what) => write!(f, "its {what} is outside the population"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::Kind;

    #[test]
    fn exclusions_outrank_and_what_is_not_told_is_not_known() {
        let set = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
        let rule = Eligibility {
            population: vec![(Trait::Attribute("region".into()), set(&["eu", "uk"]))],
            exclude: vec![
                (Trait::Tenant, set(&["t-restricted"])),
                (Trait::User, set(&["u-1"])),
                (Trait::Attribute("role".into()), set(&["qa"])),
            ],
        };
        let said = |tenant: &str, user: &str, attributes: &[(&str, &str)]| {
            let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned().into(), (*v).to_owned().into())).collect();
            let event = Event {
                ts: 0,
                id: None,
                tenant_id: Some(tenant.to_owned().into()),
                user_id: Some(user.to_owned().into()),
                experiment: None,
                bucket: None,
                attributes,
                kind: Kind::Exposure,
                fields: Default::default(),
            };
            (rule.judge(&event).is_ineligible(), rule.judge(&event).to_string())
        };
        let eu = [("region", "eu")];
        assert_eq!(said("t", "u", &eu), (false, "eligible".into()));
        assert_eq!(said("t", "u", &[]), (false, "not known to be eligible".into()));
        assert_eq!(said("t", "u", &[("region", "mars")]), (true, "its region is outside the population".into()));
        assert_eq!(said("t-restricted", "u", &[]), (true, "its tenant_id t-restricted is excluded".into()));
        assert_eq!(said("t", "u-1", &eu), (true, "its user_id is excluded".into()));
        assert_eq!(said("t", "u", &[("role", "qa"), ("region", "eu")]), (true, "its role qa is excluded".into()));
        assert!(rule.asks() && !Eligibility::default().asks());
    }
}
