//! Bytes to values. What the bytes say decides, not what the reader expects; so whatever it does not know can be skipped.

use super::{DEPTH, Fault, tag};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

pub struct Reader<'de> {
    rest: &'de [u8],
    /// In the order in which they came.
    names: Vec<&'de str>,
    depth: u32,
}

impl<'de> Reader<'de> {
    pub fn new(rest: &'de [u8]) -> Reader<'de> {
        Reader { rest, names: Vec::new(), depth: 0 }
    }

    /// All of it as one value.
    pub fn whole<T: Deserialize<'de>>(mut self) -> Result<T, Fault> {
        let value = T::deserialize(&mut self)?;
        if self.rest.is_empty() { Ok(value) } else { Err(Fault(format!("{} bytes follow its end", self.rest.len()))) }
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let (&first, rest) = self.rest.split_first().ok_or_else(ends)?;
        self.rest = rest;
        Ok(first)
    }

    fn number(&mut self) -> Result<u64, Fault> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(Fault("a number has no end".to_owned()))
    }

    /// The length of a list, a map or a text; what is to come has at least as many bytes.
    fn len(&mut self) -> Result<usize, Fault> {
        let n = self.number()?;
        usize::try_from(n).ok().filter(|n| *n <= self.rest.len()).ok_or_else(ends)
    }

    fn bytes(&mut self) -> Result<&'de [u8], Fault> {
        let n = self.len()?;
        let (bytes, rest) = self.rest.split_at_checked(n).ok_or_else(ends)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(ends)?;
        self.rest = rest;
        Ok(*array)
    }

    fn text(&mut self) -> Result<&'de str, Fault> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Fault("a text is not UTF-8".to_owned()))
    }

    fn name(&mut self) -> Result<&'de str, Fault> {
        match self.number()? {
            0 => {
                let name = self.text()?;
                self.names.push(name);
                Ok(name)
            }
            n => {
                usize::try_from(n - 1).ok().and_then(|n| self.names.get(n)).copied().ok_or_else(|| Fault("a name is not known".to_owned()))
            }
        }
    }

    /// Runs `body` one level deeper.
    fn inside<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.depth == DEPTH {
            return Err(Fault("values are nested too deeply".to_owned()));
        }
        self.depth += 1;
        let value = body(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn value<V: Visitor<'de>>(&mut self, tag: u8, visitor: V) -> Result<V::Value, Fault> {
        match tag {
            small @ tag::SMALL.. => visitor.visit_u64((small - tag::SMALL).into()),
            tag::NONE => visitor.visit_unit(),
            tag::SOME => self.inside(|inner| visitor.visit_some(inner)),
            tag::FALSE => visitor.visit_bool(false),
            tag::TRUE => visitor.visit_bool(true),
            tag::UNSIGNED => visitor.visit_u64(self.number()?),
            tag::NEGATIVE => visitor.visit_i64(!(self.number()? as i64)),
            tag::F64 => visitor.visit_f64(f64::from_le_bytes(self.array()?)),
            tag::F32 => visitor.visit_f32(f32::from_le_bytes(self.array()?)),
            tag::WHOLE => visitor.visit_f64(self.number()? as f64),
            tag::TEXT => visitor.visit_borrowed_str(self.text()?),
            tag::BYTES => visitor.visit_borrowed_bytes(self.bytes()?),
            tag::LIST => {
                let left = self.len()?;
                self.inside(|reader| visitor.visit_seq(Items { reader, left }))
            }
            tag::MAP => {
                let left = self.len()?;
                self.inside(|reader| visitor.visit_map(Items { reader, left }))
            }
            tag::FIELDS => {
                let left = self.len()?;
                self.inside(|reader| visitor.visit_map(Fields { reader, left }))
            }
            tag::VARIANT => self.inside(|reader| visitor.visit_enum(Variant(reader))),
            unknown => Err(Fault(format!("{unknown} begins no value"))),
        }
    }
}

fn ends() -> Fault {
    Fault("it ends too early".to_owned())
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Fault;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let tag = self.byte()?;
        self.value(tag, visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.rest.first() {
            Some(&tag::NONE) => {
                self.byte()?;
                visitor.visit_none()
            }
            Some(&tag::SOME) => self.deserialize_any(visitor),
            // It was not optional when it was written.
            _ => self.inside(|inner| visitor.visit_some(inner)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        self.inside(|inner| visitor.visit_newtype_struct(inner))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        // A variant is not something that serde's `IgnoredAny` takes.
        match self.byte()? {
            tag::VARIANT => {
                self.name()?;
                self.inside(|inner| inner.deserialize_ignored_any(visitor))
            }
            tag => self.value(tag, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        struct enum identifier
    }
}

/// Items of a list, or keys and values of a map.
struct Items<'r, 'de> {
    reader: &'r mut Reader<'de>,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> de::MapAccess<'de> for Items<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        de::SeqAccess::next_element_seed(self, seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

/// Fields by name.
struct Fields<'r, 'de> {
    reader: &'r mut Reader<'de>,
    left: usize,
}

impl<'de> de::MapAccess<'de> for Fields<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        let name = self.reader.name()?;
        seed.deserialize(de::value::BorrowedStrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        seed.deserialize(&mut *self.reader)
    }
}

/// A variant's name, and what it holds.
struct Variant<'r, 'de>(&'r mut Reader<'de>);

impl<'r, 'de> de::EnumAccess<'de> for Variant<'r, 'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let name = self.0.name()?;
        Ok((seed.deserialize(IntoDeserializer::<Fault>::into_deserializer(name))?, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Deserialize::deserialize(self.0)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        seed.deserialize(self.0)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.0.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        self.0.deserialize_any(visitor)
    }
}
