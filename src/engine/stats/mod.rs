//! Sequential tests: evidence that may be looked at after every record without inflating false alarms.
//!
//! Every test returns the natural logarithm of an e-value, `log_e`. Under its null hypothesis ("the bucket is no worse than
//! tolerated") the e-value is a nonnegative supermartingale that starts at 1, so by Ville's inequality the chance that it ever
//! reaches `1/alpha` is at most `alpha`, whenever and however often one looks. The caller keeps the running maximum and acts
//! once it reaches `ln(1/(alpha * weight))`.
//!
//! All functions are pure functions of counts and sums. Arguments outside their range are moved to the nearest bound (more hits
//! than observations count as all hits), and an argument that is not a number gives no evidence: `0`, or the widest bound.
//! Nothing here panics or returns NaN.
//!
//! An *arm* is a bucket of the experiment: T the treatment, C the control (the baseline). A *bin* is a cell of a histogram.

pub mod beta;
pub mod counts;
pub mod design_effect;
pub mod detector;
pub mod exceedance;
pub mod fixed;
pub mod lift;
pub mod means;
pub mod multiplicity;
pub mod numeric;
pub mod posterior;
pub mod quantiles;
pub mod rates;
pub mod size;
pub mod srm;
pub mod starts;
pub mod zero_tolerance;

#[cfg(test)]
mod testing;
