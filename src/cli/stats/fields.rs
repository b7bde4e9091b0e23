//! Fields of the test cases, checked while they are read.

use crate::engine::stats::{counts, design_effect, detector, means, quantiles, rates, starts};
use serde::Deserialize;
use serde_json::Value;

/// A number within bounds; anything else is refused by name.
macro_rules! bounded {
    ($name:ident, $what:literal, $range:expr) => {
        #[doc = $what]
        #[derive(Clone, Copy, Debug, Deserialize)]
        #[serde(try_from = "f64")]
        pub struct $name(pub f64);

        impl TryFrom<f64> for $name {
            type Error = String;

            fn try_from(value: f64) -> Result<Self, String> {
                if ($range).contains(&value) { Ok($name(value)) } else { Err(format!("{value} is not {}", $what)) }
            }
        }
    };
}

bounded!(Count, "a number from 0 to 1e15", 0.0..=1e15);
bounded!(Real, "a number from -1e100 to 1e100", -1e100..=1e100);
bounded!(Share, "a share from 0 to 1", 0.0..=1.0);
bounded!(Alpha, "an alpha above 0 and up to 1", f64::MIN_POSITIVE..=1.0);
bounded!(Positive, "a number from 1e-100 to 1e100", 1e-100..=1e100);
bounded!(AtLeastOne, "a number from 1 to 1e15", 1.0..=1e15);
bounded!(Change, "a relative change from -1 to 1e6", -1.0..=1e6);
bounded!(PoissonMean, "a mean from 0 to 1e9", 0.0..=1e9);

impl Default for AtLeastOne {
    fn default() -> Self {
        AtLeastOne(1.0)
    }
}

/// Evidence, which may be infinite.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Value")]
pub struct Evidence(pub f64);

impl TryFrom<Value> for Evidence {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let number = match value.as_str() {
            Some("inf") => Some(f64::INFINITY),
            Some("-inf") => Some(f64::NEG_INFINITY),
            _ => value.as_f64(),
        };
        number.map(Evidence).ok_or_else(|| format!("{value} is neither a number nor \"inf\" nor \"-inf\""))
    }
}

/// Longest list of strata, hypotheses, panes or batches.
const MAX_LIST: usize = 10_000;

/// A list of moderate length.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<T>", bound = "T: Deserialize<'de>")]
pub struct List<T>(pub Vec<T>);

impl<T> TryFrom<Vec<T>> for List<T> {
    type Error = String;

    fn try_from(items: Vec<T>) -> Result<Self, String> {
        if items.len() <= MAX_LIST { Ok(List(items)) } else { Err(format!("a list has {} items, more than {MAX_LIST}", items.len())) }
    }
}

/// Hits among observations: refuses more of them than there are.
pub fn hits(x: f64, n: f64, names: &str) -> Result<(), String> {
    if x <= n { Ok(()) } else { Err(format!("{names}: {x} is more than {n}")) }
}

#[derive(Deserialize)]
#[serde(try_from = "RawRates")]
pub struct RateStratum(pub rates::Stratum);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRates {
    w: Share,
    m: Share,
    n_t: Count,
    x_t: Count,
    n_c: Count,
    x_c: Count,
}

impl TryFrom<RawRates> for RateStratum {
    type Error = String;

    fn try_from(s: RawRates) -> Result<Self, String> {
        hits(s.x_t.0, s.n_t.0, "x_t of n_t")?;
        hits(s.x_c.0, s.n_c.0, "x_c of n_c")?;
        Ok(RateStratum(rates::Stratum { w: s.w.0, m: s.m.0, n_t: s.n_t.0, x_t: s.x_t.0, n_c: s.n_c.0, x_c: s.x_c.0 }))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "RawStart")]
pub struct RateStart(pub starts::Start);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStart {
    share: Share,
    w: Share,
    m: Share,
    n_t: Count,
    x_t: Count,
    n_c: Count,
    x_c: Count,
}

impl TryFrom<RawStart> for RateStart {
    type Error = String;

    fn try_from(s: RawStart) -> Result<Self, String> {
        let stratum = RateStratum::try_from(RawRates { w: s.w, m: s.m, n_t: s.n_t, x_t: s.x_t, n_c: s.n_c, x_c: s.x_c })?;
        Ok(RateStart(starts::Start { share: s.share.0, stratum: stratum.0 }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountStratum {
    w: Share,
    x_t: Count,
    x_c: Count,
}

impl CountStratum {
    pub fn stratum(&self) -> counts::Stratum {
        counts::Stratum { w: self.w.0, x_t: self.x_t.0, x_c: self.x_c.0 }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "RawArm")]
pub struct MeanArm(pub means::Arm);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawArm {
    n: u64,
    sy: Real,
    syy: Real,
    sx: Option<Real>,
    sxx: Option<Real>,
    sxy: Option<Real>,
}

impl TryFrom<RawArm> for MeanArm {
    type Error = String;

    fn try_from(arm: RawArm) -> Result<Self, String> {
        let covariate = match (arm.sx, arm.sxx, arm.sxy) {
            (Some(sx), Some(sxx), Some(sxy)) => Some(means::Covariate { sx: sx.0, sxx: sxx.0, sxy: sxy.0 }),
            (None, None, None) => None,
            _ => return Err("a covariate needs sx, sxx and sxy".to_owned()),
        };
        Ok(MeanArm(means::Arm { n: arm.n, shift: 0.0, sy: arm.sy.0, syy: arm.syy.0, covariate }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeanStratum {
    pub t: MeanArm,
    pub c: MeanArm,
}

/// Which way worse is.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "f64")]
pub struct Sign(pub f64);

impl TryFrom<f64> for Sign {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        if value.abs() == 1.0 { Ok(Sign(value)) } else { Err(format!("the sign {value} is neither 1 nor -1")) }
    }
}

/// A quantile level in parts per million.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "u32")]
pub struct Ppm(pub u32);

impl TryFrom<u32> for Ppm {
    type Error = String;

    fn try_from(value: u32) -> Result<Self, String> {
        if value <= 1_000_000 { Ok(Ppm(value)) } else { Err(format!("{value} is more than a million parts per million")) }
    }
}

/// A relative margin in parts per million.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "i64")]
pub struct MarginPpm(pub i64);

impl TryFrom<i64> for MarginPpm {
    type Error = String;

    fn try_from(value: i64) -> Result<Self, String> {
        if value >= -1_000_000 { Ok(MarginPpm(value)) } else { Err(format!("{value} parts per million are less than -100%")) }
    }
}

/// Significant digits of histogram bins.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "u8")]
pub struct Digits(pub quantiles::Resolution);

impl TryFrom<u8> for Digits {
    type Error = String;

    fn try_from(value: u8) -> Result<Self, String> {
        if (1..=5).contains(&value) {
            Ok(Digits(quantiles::Resolution::digits(value)))
        } else {
            Err(format!("{value} significant digits: from 1 to 5"))
        }
    }
}

/// Pairs of a bin's edge and its count.
pub type Bins = Vec<(u64, u64)>;

/// k_t, n_t, k_c and n_c of a pane.
#[derive(Deserialize)]
pub struct RateQuad(Count, Count, Count, Count);

impl RateQuad {
    pub fn pane(&self) -> detector::RatePane {
        detector::RatePane { k_t: self.0.0, n_t: self.1.0, k_c: self.2.0, n_c: self.3.0 }
    }
}

/// Observations and hits of a batch.
#[derive(Deserialize)]
pub struct BatchPair(Count, Count);

impl BatchPair {
    pub fn batch(&self) -> design_effect::Batch {
        design_effect::Batch { n: self.0.0, s: self.1.0 }
    }
}

/// Blocks, then the clustered and independent variances of control and of treatment.
#[derive(Deserialize)]
pub struct LevelTuple(u64, Count, Count, Count, Count);

impl LevelTuple {
    pub fn level(&self) -> design_effect::LadderLevel {
        design_effect::LadderLevel {
            blocks: self.0,
            clustered_c: self.1.0,
            independent_c: self.2.0,
            clustered_t: self.3.0,
            independent_t: self.4.0,
        }
    }
}
