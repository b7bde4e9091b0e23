//! Observations of a closed pane in as few bytes as they need. Panes of partitions that are ahead wait for the slowest: of what a backlog
//! takes, most is theirs.

use super::{Observation, SEEN_MAX};
use crate::engine::kept::Bytes;
use serde::{Deserialize, Serialize};

/// A list of observations, field by field: each field in as many bytes as the largest of its values needs, or in none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unproven")]
pub struct Packed {
    len: usize,
    /// Bytes of a value: 0, 1, 2 or 4.
    widths: [u8; COLUMNS],
    bytes: Bytes,
}

/// As it was read.
#[derive(Deserialize)]
struct Unproven {
    len: usize,
    widths: [u8; COLUMNS],
    bytes: Bytes,
}

impl TryFrom<Unproven> for Packed {
    type Error = &'static str;

    fn try_from(Unproven { len, widths, bytes }: Unproven) -> Result<Packed, &'static str> {
        let right = len <= SEEN_MAX && widths.iter().all(|width| matches!(width, 0 | 1 | 2 | 4));
        let size = || len * widths.iter().map(|width| usize::from(*width)).sum::<usize>();
        if right && bytes.0.len() == size() { Ok(Packed { len, widths, bytes }) } else { Err("packed observations are damaged") }
    }
}

const COLUMNS: usize = 5;

/// The fields as numbers that are small as a rule: that there is no profile is 0.
fn fields(o: &Observation) -> [u32; COLUMNS] {
    [o.cell, o.age, u32::from(o.value), u32::from(o.batch), o.profile.wrapping_add(1)]
}

fn set(o: &mut Observation, field: usize, value: u32) {
    match field {
        0 => o.cell = value,
        1 => o.age = value,
        2 => o.value = value as u16,
        3 => o.batch = value as u16,
        _ => o.profile = value.wrapping_sub(1),
    }
}

impl Packed {
    pub fn of(list: &[Observation]) -> Packed {
        let mut all = [0; COLUMNS];
        for o in list {
            all.iter_mut().zip(fields(o)).for_each(|(all, value)| *all |= value);
        }
        let widths = all.map(|bits| match bits {
            0 => 0,
            1..=0xff => 1,
            0x100..=0xffff => 2,
            _ => 4,
        });
        let mut bytes = vec![0; list.len() * widths.iter().map(|w| usize::from(*w)).sum::<usize>()];
        let mut rest = &mut bytes[..];
        for (field, &width) in widths.iter().enumerate() {
            let (column, later) = rest.split_at_mut(list.len() * usize::from(width));
            let values = list.iter().map(|o| fields(o)[field]);
            match width {
                0 => {}
                1 => column.iter_mut().zip(values).for_each(|(to, value)| *to = value as u8),
                2 => column.as_chunks_mut().0.iter_mut().zip(values).for_each(|(to, value)| *to = (value as u16).to_le_bytes()),
                _ => column.as_chunks_mut().0.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_le_bytes()),
            }
            rest = later;
        }
        Packed { len: list.len(), widths, bytes: Bytes(bytes) }
    }

    /// Appends the observations to `list`, and returns them there.
    pub fn unpack<'l>(&self, list: &'l mut Vec<Observation>) -> &'l mut [Observation] {
        let mut blank = Observation { cell: 0, age: 0, value: 0, batch: 0, profile: 0 };
        (0..COLUMNS).for_each(|field| set(&mut blank, field, 0));
        let from = list.len();
        list.resize(from + self.len, blank);
        let new = &mut list[from..];
        let mut rest = &self.bytes.0[..];
        for (field, &width) in self.widths.iter().enumerate() {
            let (column, later) = rest.split_at(self.len * usize::from(width));
            match width {
                0 => {}
                1 => new.iter_mut().zip(column).for_each(|(o, byte)| set(o, field, u32::from(*byte))),
                2 => new.iter_mut().zip(column.as_chunks().0).for_each(|(o, two)| set(o, field, u32::from(u16::from_le_bytes(*two)))),
                _ => new.iter_mut().zip(column.as_chunks().0).for_each(|(o, four)| set(o, field, u32::from_le_bytes(*four))),
            }
            rest = later;
        }
        new
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        self.bytes.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kept;
    use crate::engine::pane::NO_UNIT;
    use crate::engine::segment::NO_PROFILE;
    use proptest::prelude::*;

    fn unpacked(packed: &Packed) -> Vec<Observation> {
        let mut list = Vec::new();
        packed.unpack(&mut list);
        list
    }

    #[test]
    fn what_most_observations_lack_takes_no_room() {
        let list: Vec<_> = (0..200).map(|n| Observation { cell: 300, age: n, value: 7, batch: NO_UNIT, profile: NO_PROFILE }).collect();
        let packed = Packed::of(&list);
        assert_eq!((packed.size(), unpacked(&packed)), (200 * 6, list));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let good = Packed::of(&[Observation { cell: 3, age: 0, value: 700, batch: 1, profile: NO_PROFILE }]);
        let read = |packed: &Packed| kept::decode::<Packed>(&kept::encode(packed).unwrap());
        assert_eq!(read(&good).as_ref(), Ok(&good));
        let endless = Packed { len: usize::MAX / 2, widths: [0; COLUMNS], bytes: Bytes::default() };
        for bad in [Packed { len: 2, ..good.clone() }, Packed { widths: [3, 0, 0, 1, 0], ..good.clone() }, endless] {
            assert!(read(&bad).unwrap_err().contains("damaged"), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(seen in prop::collection::vec(any::<(u32, u32, u16, u16, u32)>(), 0..50), bits in any::<[u8; COLUMNS]>()) {
            let o = |(cell, age, value, batch, profile): (u32, u32, u16, u16, u32)| {
                let few = |value: u32, field: usize| value.checked_shr(u32::from(bits[field] % 33)).unwrap_or(0);
                Observation {
                    cell: few(cell, 0),
                    age: few(age, 1),
                    value: few(u32::from(value), 2) as u16,
                    batch: few(u32::from(batch), 3) as u16,
                    profile: few(profile, 4).wrapping_sub(1),
                }
            };
            let list: Vec<_> = seen.into_iter().map(o).collect();
            let mut out = list.clone();
            prop_assert_eq!(&*Packed::of(&list).unpack(&mut out), &*list);
            prop_assert_eq!(out.len(), 2 * list.len());
        }
    }
}
