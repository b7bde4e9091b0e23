//! One pass over the JSON text of a record: exactly RFC 8259, borrowing, with a bound on nesting.

use crate::engine::event::Text;
use std::borrow::Cow;

/// Why a text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not JSON.
    Syntax,
    /// JSON perhaps, but nested deeper than allowed.
    Depth,
}

/// A JSON value that has been passed over; `null` is `Absent`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Absent,
    Bool(bool),
    /// Its text, a valid JSON number.
    Number(&'a str),
    String(Raw<'a>),
    /// Its text, braces included.
    Object(&'a str),
    /// Its text, brackets included.
    Array(&'a str),
}

/// What stands between the quotes of a valid JSON string.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Raw<'a> {
    pub text: &'a str,
    pub escaped: bool,
}

impl<'a> Raw<'a> {
    /// The string that is meant: borrowed unless it holds an escape.
    pub fn decode(self) -> Text<'a> {
        if self.escaped { Cow::Owned(unescape(self.text)) } else { Cow::Borrowed(self.text) }
    }
}

/// A position in a text. Every method that takes a value leaves the position behind it.
pub struct Scanner<'a> {
    text: &'a str,
    pos: usize,
    max_depth: usize,
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a str, max_depth: usize) -> Scanner<'a> {
        Scanner { text, pos: 0, max_depth }
    }

    pub fn pos(&self) -> usize {
        self.pos
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    /// Moves on by `n` bytes that the caller has looked at.
    pub fn skip(&mut self, n: usize) {
        self.pos += n;
    }

    /// The byte at the position; 0, which is never valid JSON, at the end.
    #[inline]
    pub fn peek(&self) -> u8 {
        self.bytes().get(self.pos).copied().unwrap_or(0)
    }

    #[inline]
    pub fn space(&mut self) {
        while matches!(self.peek(), b' ' | b'\n' | b'\r' | b'\t') {
            self.pos += 1;
        }
    }

    /// Takes `byte`, which must come next.
    #[inline]
    pub fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        if self.peek() == byte {
            self.pos += 1;
            Ok(())
        } else {
            Err(Fault::Syntax)
        }
    }

    pub fn at_end(&self) -> bool {
        self.pos == self.text.len()
    }

    /// The text from a position behind which a value begins to this one, behind its end.
    #[inline]
    pub fn text(&self, from: usize) -> &'a str {
        self.text.get(from..self.pos).unwrap_or_default()
    }

    fn slice(&self, from: usize, to: usize) -> Result<&'a str, Fault> {
        self.text.get(from..to).ok_or(Fault::Syntax)
    }

    /// A value that stands `depth` containers deep.
    #[inline]
    pub fn value(&mut self, depth: usize) -> Result<Value<'a>, Fault> {
        let mut value = Value::Absent;
        self.value_into(depth, &mut value)?;
        Ok(value)
    }

    /// Writes the value where it is to stay: moving it there would cost as much as scanning it.
    #[inline(always)]
    pub fn value_into(&mut self, depth: usize, out: &mut Value<'a>) -> Result<(), Fault> {
        self.space();
        match self.peek() {
            b'"' => *out = Value::String(self.string()?),
            b'-' | b'0'..=b'9' => *out = Value::Number(self.number()?),
            b't' => self.word("true", Value::Bool(true), out)?,
            b'f' => self.word("false", Value::Bool(false), out)?,
            b'n' => self.word("null", Value::Absent, out)?,
            _ => *out = self.container(depth)?,
        }
        Ok(())
    }

    fn container(&mut self, depth: usize) -> Result<Value<'a>, Fault> {
        let from = self.pos;
        match self.peek() {
            b'{' => {
                self.object(depth, |_, _| ())?;
                Ok(Value::Object(self.slice(from, self.pos)?))
            }
            b'[' => {
                self.array(depth, |_, _| ())?;
                Ok(Value::Array(self.slice(from, self.pos)?))
            }
            _ => Err(Fault::Syntax),
        }
    }

    /// An object, each member given to `member` in order.
    pub fn object(&mut self, depth: usize, mut member: impl FnMut(Raw<'a>, Value<'a>)) -> Result<(), Fault> {
        self.deeper(depth)?;
        self.expect(b'{')?;
        self.space();
        if self.peek() == b'}' {
            self.pos += 1;
            return Ok(());
        }
        loop {
            self.space();
            let key = self.string()?;
            self.space();
            self.expect(b':')?;
            let value = self.value(depth + 1)?;
            member(key, value);
            self.space();
            match self.peek() {
                b',' => self.pos += 1,
                _ => return self.expect(b'}'),
            }
        }
    }

    /// An array, each element given to `element` with its index.
    pub fn array(&mut self, depth: usize, mut element: impl FnMut(usize, Value<'a>)) -> Result<(), Fault> {
        self.deeper(depth)?;
        self.expect(b'[')?;
        self.space();
        if self.peek() == b']' {
            self.pos += 1;
            return Ok(());
        }
        let mut index = 0;
        loop {
            let value = self.value(depth + 1)?;
            element(index, value);
            index += 1;
            self.space();
            match self.peek() {
                b',' => self.pos += 1,
                _ => return self.expect(b']'),
            }
        }
    }

    fn deeper(&self, depth: usize) -> Result<(), Fault> {
        if depth < self.max_depth { Ok(()) } else { Err(Fault::Depth) }
    }

    #[inline]
    fn word(&mut self, word: &str, value: Value<'a>, out: &mut Value<'a>) -> Result<(), Fault> {
        if self.bytes()[self.pos..].starts_with(word.as_bytes()) {
            self.pos += word.len();
            *out = value;
            Ok(())
        } else {
            Err(Fault::Syntax)
        }
    }

    /// A string, opening quote next.
    #[inline(always)]
    pub fn string(&mut self) -> Result<Raw<'a>, Fault> {
        self.expect(b'"')?;
        let from = self.pos;
        self.pos = plain_run(self.bytes(), from);
        // Apart from the rare case, so that what the common one returns stays in registers.
        let escaped = self.peek() == b'\\';
        if escaped {
            self.escaped()?;
        }
        let text = self.slice(from, self.pos)?;
        self.expect(b'"')?;
        Ok(Raw { text, escaped })
    }

    /// The rest of a string, an escape next: as far as its closing quote.
    #[cold]
    fn escaped(&mut self) -> Result<(), Fault> {
        while self.peek() == b'\\' {
            self.escape()?;
            self.pos = plain_run(self.bytes(), self.pos);
        }
        Ok(())
    }

    /// One escape; the two halves of a surrogate pair count as one.
    fn escape(&mut self) -> Result<(), Fault> {
        self.pos += 1;
        match self.peek() {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {
                self.pos += 1;
                Ok(())
            }
            b'u' => match self.hex()? {
                0xD800..=0xDBFF => {
                    self.expect(b'\\')?;
                    match self.hex()? {
                        0xDC00..=0xDFFF => Ok(()),
                        _ => Err(Fault::Syntax),
                    }
                }
                0xDC00..=0xDFFF => Err(Fault::Syntax),
                _ => Ok(()),
            },
            _ => Err(Fault::Syntax),
        }
    }

    /// `u` and four hexadecimal digits.
    fn hex(&mut self) -> Result<u32, Fault> {
        self.expect(b'u')?;
        let mut code = 0;
        for _ in 0..4 {
            code = code * 16 + char::from(self.peek()).to_digit(16).ok_or(Fault::Syntax)?;
            self.pos += 1;
        }
        Ok(code)
    }

    #[inline]
    fn number(&mut self) -> Result<&'a str, Fault> {
        let from = self.pos;
        if self.peek() == b'-' {
            self.pos += 1;
        }
        if self.peek() == b'0' {
            self.pos += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == b'.' {
            self.pos += 1;
            self.digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.pos += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.pos += 1;
            }
            self.digits()?;
        }
        self.slice(from, self.pos)
    }

    /// At least one digit.
    #[inline]
    fn digits(&mut self) -> Result<(), Fault> {
        let from = self.pos;
        while self.peek().is_ascii_digit() {
            self.pos += 1;
        }
        if self.pos > from { Ok(()) } else { Err(Fault::Syntax) }
    }
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);

/// Index of the first quote, backslash or control character at or after `from`, or the end: eight bytes at a time.
#[inline]
fn plain_run(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(chunk) = bytes.get(at..at + 8).and_then(|c| <[u8; 8]>::try_from(c).ok()) {
        let x = u64::from_le_bytes(chunk);
        // A borrow can only mark bytes above the first true hit, so the lowest mark is exact.
        let zero = |y: u64| y.wrapping_sub(ONES) & !y;
        let hits = (x.wrapping_sub(ONES * 0x20) & !x | zero(x ^ (ONES * u64::from(b'"'))) | zero(x ^ (ONES * u64::from(b'\\')))) & HIGHS;
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while at < bytes.len() && bytes[at] >= 0x20 && bytes[at] != b'"' && bytes[at] != b'\\' {
        at += 1;
    }
    at
}

/// Resolves the escapes of a string that [`Scanner::string`] has accepted.
#[cold]
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.as_bytes().get(at + 1).copied().unwrap_or(b'\\');
        rest = rest.get(at + 2..).unwrap_or("");
        out.push(match code {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = |s: &str| s.get(..4).and_then(|h| u16::from_str_radix(h, 16).ok());
                let high = unit(rest).unwrap_or(0xFFFD);
                rest = rest.get(4..).unwrap_or("");
                let mut units = vec![high];
                if (0xD800..0xDC00).contains(&high) {
                    units.extend(rest.get(2..).and_then(unit));
                    rest = rest.get(6..).unwrap_or("");
                }
                char::decode_utf16(units).next().and_then(Result::ok).unwrap_or('\u{FFFD}')
            }
            other => char::from(other),
        });
    }
    out.push_str(rest);
    out
}

const TENS: [f64; 16] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

/// The value of a JSON number, correctly rounded; infinite when it is out of range.
#[inline]
pub fn number(text: &str) -> f64 {
    // Up to 15 digits without an exponent: digits and power of ten are both exact, so that one division rounds once.
    if text.len() <= 16 {
        let (mut mantissa, mut scale, mut point) = (0u64, 0usize, false);
        let digits = text.strip_prefix('-').unwrap_or(text);
        let plain = digits.len() <= 15
            && digits.bytes().all(|b| match b {
                b'0'..=b'9' => {
                    mantissa = mantissa * 10 + u64::from(b - b'0');
                    scale += usize::from(point);
                    true
                }
                b'.' => {
                    point = true;
                    true
                }
                _ => false,
            });
        if plain {
            let value = mantissa as f64 / TENS[scale];
            return if digits.len() < text.len() { -value } else { value };
        }
    }
    text.parse().unwrap_or(f64::INFINITY)
}

/// The string that a text gives its top-level `experiment`, though the text may be cut off or broken elsewhere.
pub fn named_experiment(bytes: &[u8]) -> Option<String> {
    // Enough for every reasonable record, and little work on one of 10 MB.
    const LOOK: usize = 16 * 1024;
    let bytes = &bytes[..bytes.len().min(LOOK)];
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => std::str::from_utf8(&bytes[..e.valid_up_to()]).ok()?,
    };
    let mut scan = Scanner::new(text, usize::MAX);
    let (mut depth, mut found) = (0usize, None);
    while !scan.at_end() {
        match scan.peek() {
            b'"' => {
                let Ok(key) = scan.string() else { break };
                scan.space();
                if depth == 1 && scan.peek() == b':' {
                    scan.skip(1);
                    scan.space();
                    if scan.peek() == b'"' {
                        let Ok(value) = scan.string() else { break };
                        if key.decode() == "experiment" {
                            found = Some(value.decode().into_owned());
                        }
                    }
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        // Byte by byte may pass through a multi-byte character; strings, the only slices, begin and end at quotes.
        scan.skip(1);
    }
    found.filter(|name| !name.is_empty())
}
