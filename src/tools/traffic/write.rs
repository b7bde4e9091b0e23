//! The canonical JSON of a record, written into reused buffers: faster than a serialiser, so that one core can outrun the daemon.

use super::{Millis, Record};

pub(super) const ROUTES: [&str; 4] = ["/api/cart", "/api/checkout/address", "/api/checkout/payment", "/api/checkout/confirm"];

/// Attributes of users, and their values, each as frequent as the others.
pub(super) const ATTRIBUTES: [(&str, &[&str]); 4] = [
    ("role", &["buyer", "admin", "viewer"]),
    ("region", &["eu", "uk", "us", "apac"]),
    ("tenant_size", &["s", "m", "l"]),
    ("device", &["ios", "android", "desktop"]),
];

/// `"region":"uk"` of `region=uk`; `None` where no user has it.
pub(super) fn attribute(segment: &str) -> Option<String> {
    let (name, value) = segment.split_once('=')?;
    ATTRIBUTES.iter().any(|(n, values)| *n == name && values.contains(&value)).then(|| format!(r#""{name}":"{value}""#))
}

/// Writes records of users whose names and attributes follow from their numbers.
pub(super) struct Writer {
    tenants: u64,
    ids: bool,
    /// Attribute objects, one of which every user has.
    attributes: Vec<String>,
}

type Stamp<'a> = Option<(&'a str, &'a str)>;

impl Writer {
    pub(super) fn new(tenants: u64, ids: bool) -> Writer {
        let mut all = vec![String::new()];
        for (name, values) in ATTRIBUTES {
            let with = |before: &String| values.iter().map(|value| format!(r#"{before},"{name}":"{value}""#)).collect::<Vec<_>>();
            all = all.iter().flat_map(with).collect();
        }
        let attributes = all.iter().map(|text| format!(r#""attributes":{{{}}}"#, text.trim_start_matches(','))).collect();
        Writer { tenants, ids, attributes }
    }

    /// The attributes of a user, as they are written.
    pub(super) fn attributes(&self, user: u64) -> &str {
        &self.attributes[(mix(user ^ 0x9e37) % self.attributes.len() as u64) as usize]
    }

    pub(super) fn key(&self, out: &mut Record) {
        out.key.clear();
        out.key.extend_from_slice(b"t-");
        push_u64(&mut out.key, out.user % self.tenants);
        out.key.extend_from_slice(b"|u-");
        push_hex(&mut out.key, mix(out.user));
    }

    pub(super) fn exposure(&self, out: &mut Record, experiment: &str, bucket: &str) {
        self.open(out, "exposure", Some((experiment, bucket)));
        self.close(out);
    }

    pub(super) fn request(&self, out: &mut Record, stamp: Stamp<'_>, latency_ms: f64, error: bool, route: &str) {
        self.open(out, "request", stamp);
        let tenths = (latency_ms * 10.0).round().clamp(0.0, 1e12) as u64;
        let json = &mut out.payload;
        json.extend_from_slice(b",\"latency_ms\":");
        push_u64(json, tenths / 10);
        json.push(b'.');
        json.push(b'0' + (tenths % 10) as u8);
        json.extend_from_slice(if error { b",\"error\":true".as_slice() } else { b",\"error\":false" });
        push_text(json, "route", route);
        self.close(out);
    }

    pub(super) fn workflow(&self, out: &mut Record, stamp: Stamp<'_>, event: &str, id: u64) {
        self.open(out, event, stamp);
        push_text(&mut out.payload, "workflow", "purchase");
        out.payload.extend_from_slice(b",\"workflow_id\":\"w-");
        push_u64(&mut out.payload, id);
        out.payload.push(b'"');
        self.close(out);
    }

    pub(super) fn ticket(&self, out: &mut Record, stamp: Stamp<'_>) {
        self.open(out, "ticket", stamp);
        push_text(&mut out.payload, "category", "checkout");
        self.close(out);
    }

    pub(super) fn flag(&self, out: &mut Record, stamp: Stamp<'_>) {
        self.open(out, "compliance_flag", stamp);
        push_text(&mut out.payload, "flag", "missing_consent");
        self.close(out);
    }

    fn open(&self, out: &mut Record, event: &str, stamp: Stamp<'_>) {
        let json = &mut out.payload;
        json.clear();
        json.extend_from_slice(b"{\"event\":\"");
        json.extend_from_slice(event.as_bytes());
        json.extend_from_slice(b"\",\"ts\":");
        push_ts(json, out.ts);
        if self.ids {
            json.extend_from_slice(b",\"id\":\"r-");
            push_hex(json, mix(out.number));
            json.push(b'"');
        }
        if let Some((experiment, bucket)) = stamp {
            push_text(json, "experiment", experiment);
            push_text(json, "bucket", bucket);
        }
        json.extend_from_slice(b",\"tenant_id\":\"t-");
        push_u64(json, out.user % self.tenants);
        json.extend_from_slice(b"\",\"user_id\":\"u-");
        push_hex(json, mix(out.user));
        json.push(b'"');
    }

    fn close(&self, out: &mut Record) {
        out.payload.push(b',');
        out.payload.extend_from_slice(self.attributes(out.user).as_bytes());
        out.payload.push(b'}');
    }
}

fn push_text(json: &mut Vec<u8>, key: &str, value: &str) {
    json.extend_from_slice(b",\"");
    json.extend_from_slice(key.as_bytes());
    json.extend_from_slice(b"\":\"");
    for &byte in value.as_bytes() {
        match byte {
            b'"' | b'\\' => json.extend_from_slice(&[b'\\', byte]),
            0..0x20 => json.push(b' '),
            _ => json.push(byte),
        }
    }
    json.push(b'"');
}

fn push_ts(json: &mut Vec<u8>, ts: Millis) {
    if ts < 0 {
        json.push(b'-');
    }
    push_u64(json, ts.unsigned_abs());
}

fn push_u64(json: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    json.extend_from_slice(&digits[at..]);
}

fn push_hex(json: &mut Vec<u8>, n: u64) {
    let digit = |shift: u32| b"0123456789abcdef"[(n >> shift & 15) as usize];
    json.extend((0..16).rev().map(|i| digit(i * 4)));
}

/// A bijection that scatters its input (the finaliser of SplitMix64).
pub(super) fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}
