//! Values to bytes. Numbers are little-endian groups of seven bits, unless they fit the first byte of their value.

use super::{Fault, tag};
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::{Serialize, ser};

pub struct Writer {
    out: Vec<u8>,
    /// Numbers of the names written so far.
    names: HashMap<&'static str, u64, FixedState>,
    /// Those used lately, each where its address leads: the fields of a long list of structs come again and again.
    lately: [(&'static str, u64); 1 << LATELY],
}

/// Logarithm of the number of places.
const LATELY: u32 = 6;

type Written = Result<(), Fault>;

impl Writer {
    pub fn new(format: u8) -> Writer {
        Writer { out: vec![format], names: HashMap::default(), lately: [("", 0); 1 << LATELY] }
    }

    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    fn tag(&mut self, tag: u8) {
        self.out.push(tag);
    }

    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.out.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.out.push(n as u8);
    }

    fn sized(&mut self, tag: u8, len: usize) {
        self.tag(tag);
        self.number(len as u64);
    }

    fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.sized(tag, bytes.len());
        self.out.extend_from_slice(bytes);
    }

    /// 0 and the name itself, or the number that it got then, from 1.
    fn name(&mut self, name: &'static str) {
        // An odd multiplier (golden ratio) spreads addresses over all places.
        let place = ((name.as_ptr().addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - LATELY)) as usize;
        let (last, number) = self.lately[place];
        if number > 0 && std::ptr::eq(last, name) {
            return self.number(number);
        }
        let next = self.names.len() as u64 + 1;
        let known = *self.names.entry(name).or_insert(next);
        self.lately[place] = (name, known);
        if known == next {
            self.number(0);
            self.number(name.len() as u64);
            self.out.extend_from_slice(name.as_bytes());
        } else {
            self.number(known);
        }
    }

    fn variant(&mut self, name: &'static str) {
        self.tag(tag::VARIANT);
        self.name(name);
    }
}

impl ser::Serializer for &mut Writer {
    type Ok = ();
    type Error = Fault;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, value: bool) -> Written {
        self.tag(if value { tag::TRUE } else { tag::FALSE });
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Written {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Written {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Written {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Written {
        match u64::try_from(value) {
            Ok(value) => self.serialize_u64(value),
            Err(_) => {
                self.tag(tag::NEGATIVE);
                self.number(!value as u64);
                Ok(())
            }
        }
    }

    fn serialize_u8(self, value: u8) -> Written {
        self.serialize_u64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Written {
        self.serialize_u64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Written {
        self.serialize_u64(value.into())
    }

    fn serialize_u64(self, value: u64) -> Written {
        match u8::try_from(value).ok().and_then(|small| small.checked_add(tag::SMALL)) {
            Some(small) => self.tag(small),
            None => {
                self.tag(tag::UNSIGNED);
                self.number(value);
            }
        }
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Written {
        self.tag(tag::F32);
        self.out.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn serialize_f64(self, value: f64) -> Written {
        // Sums and counts are mostly whole numbers, and mostly small.
        let whole = value as u32;
        if f64::from(whole).to_bits() == value.to_bits() {
            self.tag(tag::WHOLE);
            self.number(whole.into());
        } else {
            self.tag(tag::F64);
            self.out.extend_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }

    fn serialize_char(self, value: char) -> Written {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Written {
        self.bytes(tag::TEXT, value.as_bytes());
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Written {
        self.bytes(tag::BYTES, value);
        Ok(())
    }

    fn serialize_none(self) -> Written {
        self.tag(tag::NONE);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Written {
        self.tag(tag::SOME);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Written {
        self.serialize_none()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Written {
        self.serialize_none()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Written {
        self.variant(variant);
        self.serialize_none()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Written {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(self, _: &'static str, _: u32, variant: &'static str, value: &T) -> Written {
        self.variant(variant);
        value.serialize(self)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self, Fault> {
        self.sized(tag::LIST, len.ok_or_else(|| Fault("a list of unknown length".to_owned()))?);
        Ok(self)
    }

    fn serialize_tuple(self, len: usize) -> Result<Self, Fault> {
        self.serialize_seq(Some(len))
    }

    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<Self, Fault> {
        self.serialize_seq(Some(len))
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, variant: &'static str, len: usize) -> Result<Self, Fault> {
        self.variant(variant);
        self.serialize_seq(Some(len))
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self, Fault> {
        self.sized(tag::MAP, len.ok_or_else(|| Fault("a map of unknown length".to_owned()))?);
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Self, Fault> {
        self.sized(tag::FIELDS, len);
        Ok(self)
    }

    fn serialize_struct_variant(self, name: &'static str, _: u32, variant: &'static str, len: usize) -> Result<Self, Fault> {
        self.variant(variant);
        self.serialize_struct(name, len)
    }
}

/// Parts that are written one after the other, with nothing between and behind them.
macro_rules! in_order {
    ($($part:ident :: $method:ident),*) => {$(
        impl ser::$part for &mut Writer {
            type Ok = ();
            type Error = Fault;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
                value.serialize(&mut **self)
            }

            fn end(self) -> Written {
                Ok(())
            }
        }
    )*};
}

in_order!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

/// Fields, each behind its name.
macro_rules! named {
    ($($part:ident),*) => {$(
        impl ser::$part for &mut Writer {
            type Ok = ();
            type Error = Fault;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Written {
                self.name(name);
                value.serialize(&mut **self)
            }

            fn end(self) -> Written {
                Ok(())
            }
        }
    )*};
}

named!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for &mut Writer {
    type Ok = ();
    type Error = Fault;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Written {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Written {
        value.serialize(&mut **self)
    }

    fn end(self) -> Written {
        Ok(())
    }
}
