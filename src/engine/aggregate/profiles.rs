//! Profiles of units: the values of the attributes that an experiment is sliced by. A profile is one combination of them; a unit keeps
//! the number of that with which it was exposed first.

use super::keys::{Key, KeyMap, KeySet, chain, key};
use crate::engine::event::Text;
use crate::engine::plan::Catalog;
use crate::engine::segment::{Listed, MISSING, NO_PROFILE, Profile, REST};
use serde::{Deserialize, Serialize};

/// A profile that is not known: its unit belongs to the rest of each attribute.
pub const UNKNOWN: u16 = u16::MAX;
/// Values of an attribute that are told apart; further ones are the rest.
const VALUES_MAX: usize = 254;
/// Longest value that is told apart, in bytes.
const VALUE_BYTES: usize = 128;

/// See the module.
pub struct Profiles {
    /// By experiment; `None` where it is not sliced.
    tables: Vec<Option<Box<Table>>>,
    /// Profiles that are new since the last snapshot, in order.
    changed: Vec<Named>,
    /// Units whose value, or profile, found no room: the rest of the attribute has them.
    pub dropped: u64,
}

#[derive(Default)]
struct Table {
    by: Vec<String>,
    /// By number.
    profiles: Vec<Profile>,
    /// Where each was put into the list of an open pane, the last time.
    listed: Vec<u32>,
    /// Number of each, by its values.
    numbers: KeyMap<u16>,
    /// Values that are told apart, by attribute.
    values: Vec<KeySet>,
}

/// A profile as a checkpoint keeps it: the attributes have names, as the next rule file may slice by others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Named {
    pub experiment: u32,
    values: Vec<(String, String)>,
}

impl Profiles {
    pub fn new(catalog: &Catalog) -> Profiles {
        let table = |by: &[String]| Table { by: by.to_vec(), values: vec![KeySet::default(); by.len()], ..Table::default() };
        let tables = catalog.plans.iter().map(|plan| plan.segments.as_ref().map(|s| Box::new(table(&s.by)))).collect();
        Profiles { tables, changed: Vec::new(), dropped: 0 }
    }

    pub fn is_sliced(&self, experiment: u32) -> bool {
        self.tables.get(experiment as usize).is_some_and(Option::is_some)
    }

    /// Number of the profile that a record's attributes make.
    pub fn number(&mut self, experiment: u32, attributes: &[(Text<'_>, Text<'_>)]) -> u16 {
        let Some(Some(table)) = self.tables.get_mut(experiment as usize) else { return UNKNOWN };
        let given = |name: &str| attributes.iter().find(|(n, v)| n == name && !v.is_empty()).map_or(MISSING, |(_, v)| v);
        let all = table.by.iter().fold(0, |all, name| chain(all, given(name)));
        if let Some(number) = table.numbers.get(&all) {
            return *number;
        }
        let texts: Vec<&str> = table.by.iter().zip(&mut table.values).map(|(name, told)| tell(told, given(name))).collect();
        let known = texts.iter().fold(0, |all, text| chain(all, text));
        self.dropped += u64::from(known != all);
        if let Some(number) = table.numbers.get(&known) {
            return *number;
        }
        let texts: Vec<String> = texts.into_iter().map(str::to_owned).collect();
        let values = table.by.iter().cloned().zip(texts.iter().cloned()).collect();
        match table.add(texts.into(), Some(known)) {
            Some(number) => {
                self.changed.push(Named { experiment, values });
                number
            }
            None => {
                self.dropped += u64::from(known == all);
                UNKNOWN
            }
        }
    }

    /// Place of a profile in the list of the open pane, into which it is put if it is not there yet.
    pub fn list(&mut self, experiment: u32, number: u16, open: &mut Vec<Listed>) -> u32 {
        let Some(Some(table)) = self.tables.get_mut(experiment as usize) else { return NO_PROFILE };
        let Some(profile) = table.profiles.get(usize::from(number)) else { return NO_PROFILE };
        let place = &mut table.listed[usize::from(number)];
        if open.get(*place as usize).is_none_or(|l| (l.experiment, l.number) != (experiment, number)) {
            *place = open.len() as u32;
            open.push(Listed { experiment, number, values: Profile::clone(profile) });
        }
        *place
    }

    /// Finds again what an open pane from a checkpoint lists.
    pub fn relist(&mut self, open: &[Listed]) {
        for (place, listed) in open.iter().enumerate() {
            if let Some(Some(table)) = self.tables.get_mut(listed.experiment as usize)
                && let Some(own) = table.listed.get_mut(usize::from(listed.number))
            {
                *own = place as u32;
            }
        }
    }

    /// Profiles that are new since the last call, or all of them, in order of their numbers.
    pub fn take_changes(&mut self, all: bool) -> Vec<Named> {
        let new = std::mem::take(&mut self.changed);
        if !all {
            return new;
        }
        let tables = (0..).zip(&self.tables).filter_map(|(experiment, table)| Some((experiment, table.as_ref()?)));
        tables.flat_map(|(experiment, table)| table.profiles.iter().map(move |profile| table.named(experiment, profile))).collect()
    }

    /// Takes up a profile of a checkpoint. Numbers go on from those before, whatever the attributes were then.
    pub fn apply(&mut self, named: Named) {
        let Some(Some(table)) = self.tables.get_mut(named.experiment as usize) else { return };
        let of = |name: &String| named.values.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let complete = table.by.iter().all(|name| of(name).is_some());
        let texts: Vec<String> = table.by.iter().map(|name| of(name).unwrap_or_else(|| REST.to_owned())).collect();
        for (told, text) in table.values.iter_mut().zip(&texts).filter(|(_, text)| *text != REST) {
            told.insert(key(text));
        }
        let known = texts.iter().fold(0, |all, text| chain(all, text));
        table.add(texts.into(), complete.then_some(known));
    }
}

impl Table {
    fn named(&self, experiment: u32, profile: &Profile) -> Named {
        Named { experiment, values: self.by.iter().cloned().zip(profile.iter().cloned()).collect() }
    }

    /// `key` finds it again.
    fn add(&mut self, profile: Profile, key: Option<Key>) -> Option<u16> {
        let number = u16::try_from(self.profiles.len()).ok().filter(|n| *n != UNKNOWN)?;
        self.profiles.push(profile);
        self.listed.push(NO_PROFILE);
        if let Some(key) = key {
            self.numbers.insert(key, number);
        }
        Some(number)
    }
}

/// The value, if there is room to tell it apart.
fn tell<'t>(told: &mut KeySet, text: &'t str) -> &'t str {
    let id = key(text);
    let room = told.len() < VALUES_MAX && text.len() <= VALUE_BYTES;
    if told.contains(&id) || room && told.insert(id) { text } else { REST }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::FieldTable;
    use std::borrow::Cow;

    fn profiles(by: &str) -> Profiles {
        let rule = format!(
            "guardrail: v1\noverview: {{experiment: e, owner: o}}\nbuckets: {{a: {{baseline: true}}, b: {{}}}}\n\
             guardrails: [{{metric: error_rate, max_increase: 1pp}}]\nactions: {{mode: observe}}\nanalysis: {{segments: {{by: {by}}}}}\n"
        );
        let plan = crate::rules::parse_str("r", &rule, &mut FieldTable::default(), None).rule.unwrap().plan;
        Profiles::new(&Catalog::new(vec![plan], FieldTable::default()))
    }

    fn number(profiles: &mut Profiles, attributes: &[(&str, &str)]) -> u16 {
        let texts: Vec<_> = attributes.iter().map(|(n, v)| (Cow::Owned((*n).to_owned()), Cow::Owned((*v).to_owned()))).collect();
        profiles.number(0, &texts)
    }

    fn values(profiles: &mut Profiles, number: u16) -> Vec<String> {
        let mut open = Vec::new();
        let place = profiles.list(0, number, &mut open);
        open[place as usize].values.to_vec()
    }

    #[test]
    fn each_combination_has_one_number() {
        let mut p = profiles("[region, device]");
        let eu = number(&mut p, &[("device", "ios"), ("region", "eu"), ("role", "x")]);
        assert_eq!(number(&mut p, &[("region", "eu"), ("device", "ios")]), eu);
        assert_ne!(number(&mut p, &[("region", "ios"), ("device", "eu")]), eu);
        let bare = number(&mut p, &[("region", "")]);
        assert_eq!(values(&mut p, eu), ["eu", "ios"]);
        assert_eq!(values(&mut p, bare), [MISSING, MISSING]);
        let mut open = Vec::new();
        let places = [eu, bare, eu].map(|n| p.list(0, n, &mut open));
        assert_eq!((places, open.len()), ([0, 1, 0], 2), "a pane lists each once");
        assert_eq!(p.list(0, UNKNOWN, &mut open), NO_PROFILE);
    }

    #[test]
    fn a_million_values_leave_room_for_those_that_came_first() {
        let mut p = profiles("[region, device, role]");
        let first = number(&mut p, &[("region", "eu"), ("device", "ios")]);
        for i in 0..1_000_000 {
            let device = format!("d{}", i % 300);
            number(&mut p, &[("region", &format!("junk-{i}")), ("device", &device), ("role", &i.to_string())]);
        }
        let table = p.tables[0].as_ref().unwrap();
        assert!(table.profiles.len() < usize::from(UNKNOWN) && table.values.iter().all(|told| told.len() <= VALUES_MAX));
        assert!(p.dropped > 900_000, "{}", p.dropped);
        assert_eq!(number(&mut p, &[("region", "eu"), ("device", "ios")]), first);
        let late = number(&mut p, &[("region", "eu"), ("device", &"x".repeat(VALUE_BYTES + 1))]);
        assert_eq!(values(&mut p, late), ["eu", REST, MISSING]);
    }

    #[test]
    fn changes_rebuild_the_same_numbers_and_other_attributes_go_on_from_them() {
        let mut p = profiles("[region]");
        let numbers: Vec<u16> = ["eu", "uk", "eu", "us"].iter().map(|v| number(&mut p, &[("region", v)])).collect();
        let (mut same, mut more) = (profiles("[region]"), profiles("[device, region]"));
        assert_eq!(p.take_changes(true), p.take_changes(true));
        for named in p.take_changes(true) {
            same.apply(named.clone());
            more.apply(named);
        }
        assert_eq!(number(&mut same, &[("region", "us")]), numbers[3]);
        assert!(same.take_changes(false).is_empty());
        assert_eq!(values(&mut more, numbers[1]), [REST, "uk"], "the device was not asked for");
        assert_eq!(number(&mut more, &[("region", "uk"), ("device", "ios")]), 3);
    }
}
