//! Fields that rules ask for by JSON Pointer (RFC 6901), beyond the canonical ones.

use super::json::{Raw, Scanner, Value, number};
use crate::engine::event::{FieldId, Scalar};
use crate::engine::outcome::Reject;
use crate::engine::plan::FieldTable;
use hashbrown::HashMap;
use smallvec::SmallVec;

struct Pointer {
    id: FieldId,
    tokens: Vec<String>,
}

/// The pointers of a [`FieldTable`], by name of the event.
pub struct Pointers(HashMap<String, Vec<Pointer>, foldhash::fast::FixedState>);

impl Pointers {
    pub fn new(table: &FieldTable) -> Pointers {
        let mut map: HashMap<String, Vec<Pointer>, foldhash::fast::FixedState> = HashMap::default();
        for (index, (event, pointer)) in table.entries.iter().enumerate() {
            // A pointer that does not begin with a slash names the whole record, which is no scalar; ids end at 65,535.
            let (Some(path), Ok(id)) = (pointer.strip_prefix('/'), FieldId::try_from(index)) else { continue };
            let tokens = path.split('/').map(|t| t.replace("~1", "/").replace("~0", "~")).collect();
            map.entry(event.clone()).or_default().push(Pointer { id, tokens });
        }
        Pointers(map)
    }

    /// The scalars that `text`, a valid record of this event, has at the pointers; of duplicate keys the last counts.
    pub fn read<'a>(&self, event: &str, text: &'a str) -> Result<SmallVec<[(FieldId, Scalar<'a>); 2]>, Reject> {
        let mut out = SmallVec::new();
        if self.0.is_empty() {
            return Ok(out);
        }
        let Some(pointers) = self.0.get(event) else { return Ok(out) };
        let found: SmallVec<[Value<'a>; 4]> = find(text, pointers.iter().map(|pointer| pointer.tokens.as_slice()));
        for (pointer, value) in pointers.iter().zip(found) {
            let scalar = match value {
                Value::Bool(b) => Scalar::Bool(b),
                Value::String(raw) => Scalar::Text(raw.decode()),
                Value::Number(text) => match number(text) {
                    n if n.is_finite() => Scalar::Number(n),
                    _ => return Err(Reject::NotFinite),
                },
                Value::Absent | Value::Object(_) | Value::Array(_) => continue,
            };
            out.push((pointer.id, scalar));
        }
        Ok(out)
    }
}

/// The values of a valid record at these paths, none of them empty; of duplicate keys the last counts.
pub fn find<'a, 'p, A>(text: &'a str, paths: impl ExactSizeIterator<Item = &'p [String]> + Clone) -> SmallVec<A>
where
    A: smallvec::Array<Item = Value<'a>>,
{
    let mut found = smallvec::smallvec![Value::Absent; paths.len()];
    members(text, |key, value| {
        let key = key.decode();
        for (path, found) in paths.clone().zip(&mut found) {
            if path[0] == key {
                *found = descend(value, &path[1..]);
            }
        }
    });
    found
}

/// Follows the tokens into a value.
fn descend<'a>(value: Value<'a>, tokens: &[String]) -> Value<'a> {
    let Some((token, rest)) = tokens.split_first() else { return value };
    let mut found = Value::Absent;
    match value {
        Value::Object(text) => members(text, |key, value| {
            if key.decode() == token.as_str() {
                found = value;
            }
        }),
        Value::Array(text) => {
            let canonical = token == "0" || !token.starts_with(['0', '+']);
            let wanted = token.parse().ok().filter(|_: &usize| canonical);
            // The text has been read once, within its bounds: it cannot fail.
            let _ = Scanner::new(text, usize::MAX).array(0, |index, value| {
                if Some(index) == wanted {
                    found = value;
                }
            });
        }
        _ => return Value::Absent,
    }
    descend(found, rest)
}

/// The members of an object whose text is known to be valid.
pub fn members<'a>(text: &'a str, member: impl FnMut(Raw<'a>, Value<'a>)) {
    let mut scan = Scanner::new(text, usize::MAX);
    scan.space();
    let _ = scan.object(0, member);
}
