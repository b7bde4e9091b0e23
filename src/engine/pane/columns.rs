//! Observations in checkpoints: a column for each field. A list of structs, as earlier versions wrote, takes twice the room and many times
//! the time; it is still read.

use super::Observation;
use crate::engine::kept::Bytes;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

/// Little-endian numbers, as many in each column.
#[derive(Default, Serialize, serde::Deserialize)]
struct Columns {
    cell: Bytes,
    age: Bytes,
    value: Bytes,
    batch: Bytes,
    profile: Bytes,
}

impl Columns {
    fn of(observations: &[Observation]) -> Columns {
        fn column<const N: usize>(observations: &[Observation], field: impl Fn(&Observation) -> [u8; N]) -> Bytes {
            Bytes(observations.iter().flat_map(field).collect())
        }
        Columns {
            cell: column(observations, |o| o.cell.to_le_bytes()),
            age: column(observations, |o| o.age.to_le_bytes()),
            value: column(observations, |o| o.value.to_le_bytes()),
            batch: column(observations, |o| o.batch.to_le_bytes()),
            profile: column(observations, |o| o.profile.to_le_bytes()),
        }
    }

    /// `None` where one column is longer than another.
    fn observations(&self) -> Option<Vec<Observation>> {
        let [cell, age, profile] = [&self.cell, &self.age, &self.profile].map(|column| column.0.as_chunks::<4>().0);
        let [value, batch] = [&self.value, &self.batch].map(|column| column.0.as_chunks::<2>().0);
        let n = cell.len();
        let bytes = [&self.cell, &self.age, &self.profile, &self.value, &self.batch].map(|column| column.0.len());
        let observation = |i: usize| Observation {
            cell: u32::from_le_bytes(cell[i]),
            age: u32::from_le_bytes(age[i]),
            value: u16::from_le_bytes(value[i]),
            batch: u16::from_le_bytes(batch[i]),
            profile: u32::from_le_bytes(profile[i]),
        };
        (bytes == [4 * n, 4 * n, 4 * n, 2 * n, 2 * n]).then(|| (0..n).map(observation).collect())
    }
}

pub fn serialize<S: Serializer>(observations: &[Observation], serializer: S) -> Result<S::Ok, S::Error> {
    Columns::of(observations).serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Observation>, D::Error> {
    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = Vec<Observation>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("observations")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<Observation>, A::Error> {
            let columns = Columns::deserialize(MapAccessDeserializer::new(map))?;
            columns.observations().ok_or_else(|| A::Error::custom("columns of observations differ in length"))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<Observation>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }
    deserializer.deserialize_any(Either)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kept;

    fn some() -> Vec<Observation> {
        let o = |n: u32| Observation { cell: n, age: n << 20, value: n as u16, batch: !(n as u16), profile: u32::MAX - n };
        (0..300).map(o).collect()
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct New(#[serde(with = "super")] Vec<Observation>);

    #[test]
    fn what_is_written_is_read_again_and_so_is_what_earlier_versions_wrote() {
        for list in [some(), Vec::new()] {
            let (old, new) = (kept::encode(&list).unwrap(), kept::encode(&New(list.clone())).unwrap());
            assert_eq!(kept::decode::<New>(&new).unwrap(), New(list.clone()));
            assert_eq!(kept::decode::<New>(&old).unwrap(), New(list));
        }
    }

    #[test]
    fn columns_of_different_lengths_are_an_error() {
        let mut columns = Columns::of(&some());
        columns.batch.0.pop();
        let error = kept::decode::<New>(&kept::encode(&columns).unwrap()).unwrap_err();
        assert!(error.contains("differ in length"), "{error}");
    }
}
