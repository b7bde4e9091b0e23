//! Avro: a writer's schema, and one datum as JSON.
//!
//! Read straight into text, with bounds on depth and length: a datum of a few bytes may claim billions of values, or nest for ever.
//! Values are written as canonical events want them: timestamps, dates and times as numbers in their own unit, decimals as numbers, bytes as
//! in Avro's JSON encoding, unions as the value that they hold.

use super::Broken;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::io::Write as _;

/// Values inside values, of schemas and of data, at most.
const MAX_DEPTH: usize = 64;
/// Types of one schema at most.
const MAX_TYPES: usize = 10_000;

/// A schema and those that it refers to.
#[derive(Debug)]
pub struct Avro {
    root: Type,
    named: Vec<Named>,
}

#[derive(Clone, Debug, PartialEq)]
enum Type {
    Null,
    Boolean,
    /// `int`, `long`, and what is counted in them.
    Integer,
    Float,
    Double,
    Bytes,
    String,
    Decimal {
        scale: usize,
    },
    Array(Box<Type>),
    Map(Box<Type>),
    Union(Vec<Type>),
    /// Index of a type that has a name.
    Named(usize),
}

#[derive(Debug)]
enum Named {
    /// Its fields are not read yet.
    Open,
    /// Each field's name as JSON text with its colon.
    Record(Vec<(String, Type)>),
    /// Symbols as JSON text.
    Enum(Vec<String>),
    Fixed {
        size: usize,
        decimal: Option<usize>,
    },
}

impl Avro {
    /// Reads a schema; `references` are those that it names, each after what it names itself.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(schema: &str, references: &[String]) -> Result<Avro, String> {
        let mut parser = Parser { names: BTreeMap::new(), named: Vec::new(), types: 0 };
        for reference in references {
            parser.text(reference)?;
        }
        let root = parser.text(schema)?;
        Ok(Avro { root, named: parser.named })
    }

    /// Makes JSON of a datum: `out`, of about `room` bytes at most.
    ///
    /// # Errors
    /// Where the bytes do not fit the schema, or a bound is exceeded.
    pub fn decode(&self, bytes: &[u8], out: &mut Vec<u8>, room: usize) -> Result<(), Broken> {
        let mut datum = Datum { named: &self.named, bytes, out, room };
        datum.value(&self.root, 0)?;
        if datum.bytes.is_empty() { Ok(()) } else { Err(Broken("bytes behind its end")) }
    }
}

struct Parser {
    /// Full names.
    names: BTreeMap<String, usize>,
    named: Vec<Named>,
    types: usize,
}

impl Parser {
    fn text(&mut self, schema: &str) -> Result<Type, String> {
        let json: Json = serde_json::from_str(schema).map_err(|error| format!("not JSON: {error}"))?;
        self.parse(&json, "", 0)
    }

    fn parse(&mut self, schema: &Json, namespace: &str, depth: usize) -> Result<Type, String> {
        self.types += 1;
        if depth > MAX_DEPTH || self.types > MAX_TYPES {
            return Err("too large or too deep".to_owned());
        }
        match schema {
            Json::String(name) => self.lookup(name, namespace),
            Json::Array(branches) => {
                let branches = branches.iter().map(|branch| self.parse(branch, namespace, depth + 1));
                Ok(Type::Union(branches.collect::<Result<_, _>>()?))
            }
            Json::Object(object) => match object.get("type") {
                Some(Json::String(kind)) => self.described(kind, schema, namespace, depth),
                Some(inner) => self.parse(inner, namespace, depth + 1),
                None => Err("a type without `type`".to_owned()),
            },
            _ => Err(format!("{schema} is no type")),
        }
    }

    fn described(&mut self, kind: &str, schema: &Json, namespace: &str, depth: usize) -> Result<Type, String> {
        let decimal = (schema["logicalType"] == "decimal").then(|| schema["scale"].as_u64().unwrap_or(0) as usize);
        let inner = |parser: &mut Parser, key: &str| parser.parse(&schema[key], namespace, depth + 1).map(Box::new);
        match kind {
            "array" => Ok(Type::Array(inner(self, "items")?)),
            "map" => Ok(Type::Map(inner(self, "values")?)),
            "bytes" => Ok(decimal.map_or(Type::Bytes, |scale| Type::Decimal { scale })),
            "fixed" => {
                let size = schema["size"].as_u64().and_then(|size| usize::try_from(size).ok()).ok_or("a `fixed` without `size`")?;
                let (index, _) = self.name(schema, namespace)?;
                self.named[index] = Named::Fixed { size, decimal };
                Ok(Type::Named(index))
            }
            "enum" => {
                let symbols = schema["symbols"].as_array().ok_or("an `enum` without `symbols`")?;
                let (index, _) = self.name(schema, namespace)?;
                self.named[index] = Named::Enum(symbols.iter().map(Json::to_string).collect());
                Ok(Type::Named(index))
            }
            "record" | "error" => {
                let (index, namespace) = self.name(schema, namespace)?;
                let mut fields = Vec::new();
                for field in schema["fields"].as_array().ok_or("a `record` without `fields`")? {
                    let name = field["name"].as_str().ok_or("a field without `name`")?;
                    fields.push((format!("{}:", Json::from(name)), self.parse(&field["type"], &namespace, depth + 1)?));
                }
                self.named[index] = Named::Record(fields);
                Ok(Type::Named(index))
            }
            _ => self.lookup(kind, namespace),
        }
    }

    /// Takes up a new name; returns its index, and the namespace of what is defined inside.
    fn name(&mut self, schema: &Json, namespace: &str) -> Result<(usize, String), String> {
        let name = schema["name"].as_str().ok_or("a named type without `name`")?;
        let namespace = match name.rsplit_once('.') {
            Some((namespace, _)) => namespace.to_owned(),
            None => schema["namespace"].as_str().unwrap_or(namespace).to_owned(),
        };
        let index = self.named.len();
        self.named.push(Named::Open);
        self.names.insert(full(name, &namespace), index);
        Ok((index, namespace))
    }

    fn lookup(&self, name: &str, namespace: &str) -> Result<Type, String> {
        Ok(match name {
            "null" => Type::Null,
            "boolean" => Type::Boolean,
            "int" | "long" => Type::Integer,
            "float" => Type::Float,
            "double" => Type::Double,
            "bytes" => Type::Bytes,
            "string" => Type::String,
            _ => {
                let known = self.names.get(&full(name, namespace)).or_else(|| self.names.get(name));
                Type::Named(*known.ok_or_else(|| format!("no type `{name}`"))?)
            }
        })
    }
}

fn full(name: &str, namespace: &str) -> String {
    if namespace.is_empty() || name.contains('.') { name.to_owned() } else { format!("{namespace}.{name}") }
}

/// Bytes on their way to text.
struct Datum<'a> {
    named: &'a [Named],
    bytes: &'a [u8],
    out: &'a mut Vec<u8>,
    room: usize,
}

impl<'a> Datum<'a> {
    fn value(&mut self, kind: &'a Type, depth: usize) -> Result<(), Broken> {
        if depth > MAX_DEPTH {
            return Err(Broken("nested too deep"));
        }
        if self.out.len() > self.room {
            return Err(Broken("too long"));
        }
        match kind {
            Type::Null => self.text("null"),
            Type::Boolean => match self.take(1)? {
                [0] => self.text("false"),
                [1] => self.text("true"),
                _ => return Err(Broken("a boolean that is neither 0 nor 1")),
            },
            Type::Integer => {
                let n = self.long()?;
                self.show(n);
            }
            Type::Float => {
                let x = self.array::<4>().map(f32::from_le_bytes)?;
                if x.is_finite() { self.show(x) } else { self.infinite() }
            }
            Type::Double => {
                let x = self.array::<8>().map(f64::from_le_bytes)?;
                if x.is_finite() { self.show(x) } else { self.infinite() }
            }
            Type::Bytes => {
                let bytes = self.sized()?;
                self.latin(bytes);
            }
            Type::String => {
                let text = std::str::from_utf8(self.sized()?).map_err(|_| Broken("text that is not UTF-8"))?;
                quote(text, self.out);
            }
            Type::Decimal { scale } => {
                let bytes = self.sized()?;
                self.decimal(bytes, *scale)?;
            }
            Type::Array(item) => self.blocks([b'[', b']'], |datum| datum.value(item, depth + 1))?,
            Type::Map(value) => self.blocks([b'{', b'}'], |datum| {
                let key = std::str::from_utf8(datum.sized()?).map_err(|_| Broken("a key that is not UTF-8"))?;
                quote(key, datum.out);
                datum.out.push(b':');
                datum.value(value, depth + 1)
            })?,
            Type::Union(branches) => {
                let branch = usize::try_from(self.long()?).ok().and_then(|at| branches.get(at));
                self.value(branch.ok_or(Broken("a branch that its union does not have"))?, depth + 1)?;
            }
            Type::Named(index) => self.named(*index, depth)?,
        }
        Ok(())
    }

    fn named(&mut self, index: usize, depth: usize) -> Result<(), Broken> {
        let named = self.named;
        match named.get(index) {
            Some(Named::Record(fields)) => {
                self.out.push(b'{');
                for (i, (key, kind)) in fields.iter().enumerate() {
                    if i > 0 {
                        self.out.push(b',');
                    }
                    self.text(key);
                    self.value(kind, depth + 1)?;
                }
                self.out.push(b'}');
            }
            Some(Named::Enum(symbols)) => {
                let symbol = usize::try_from(self.long()?).ok().and_then(|at| symbols.get(at));
                self.text(symbol.ok_or(Broken("a symbol that its enum does not have"))?);
            }
            Some(Named::Fixed { size, decimal }) => {
                let bytes = self.take(*size)?;
                match decimal {
                    Some(scale) => self.decimal(bytes, *scale)?,
                    None => self.latin(bytes),
                }
            }
            Some(Named::Open) | None => return Err(Broken("a type that was never defined")),
        }
        Ok(())
    }

    /// Items of an array or map, which come in blocks until one is empty.
    fn blocks(&mut self, [open, close]: [u8; 2], mut item: impl FnMut(&mut Self) -> Result<(), Broken>) -> Result<(), Broken> {
        self.out.push(open);
        let mut first = true;
        loop {
            let count = self.long()?;
            if count < 0 {
                // A negative count is followed by the block's length, for those who skip it.
                self.long()?;
            }
            if count == 0 {
                self.out.push(close);
                return Ok(());
            }
            for _ in 0..count.unsigned_abs() {
                if !std::mem::take(&mut first) {
                    self.out.push(b',');
                }
                item(self)?;
            }
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.bytes.split_at_checked(n).ok_or(Broken("cut off"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        self.take(N)?.try_into().map_err(|_| Broken("cut off"))
    }

    fn long(&mut self) -> Result<i64, Broken> {
        super::zigzag(&mut self.bytes)
    }

    fn sized(&mut self) -> Result<&'a [u8], Broken> {
        let length = usize::try_from(self.long()?).map_err(|_| Broken("a negative length"))?;
        self.take(length)
    }

    fn text(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn show(&mut self, value: impl std::fmt::Display) {
        // Writing to memory cannot fail.
        let _ = write!(self.out, "{value}");
    }

    /// JSON has no such number: one that is too large is refused as `not_finite`, as this should be.
    fn infinite(&mut self) {
        self.text("1e999");
    }

    fn latin(&mut self, bytes: &[u8]) {
        let text: String = bytes.iter().copied().map(char::from).collect();
        quote(&text, self.out);
    }

    /// A big-endian integer with so many digits behind the point.
    fn decimal(&mut self, bytes: &[u8], scale: usize) -> Result<(), Broken> {
        if bytes.len() > 16 || scale > 38 {
            return Err(Broken("a decimal of more than 16 bytes"));
        }
        let sign = if bytes.first().is_some_and(|byte| byte & 0x80 != 0) { -1i128 } else { 0 };
        let unscaled = bytes.iter().fold(sign, |n, byte| n << 8 | i128::from(*byte));
        let digits = format!("{:0>1$}", unscaled.unsigned_abs(), scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        let point = if scale == 0 { "" } else { "." };
        self.show(format_args!("{}{whole}{point}{fraction}", if unscaled < 0 { "-" } else { "" }));
        Ok(())
    }
}

/// Appends a text as JSON.
fn quote(text: &str, out: &mut Vec<u8>) {
    // Writing a text to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}
