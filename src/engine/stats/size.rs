//! Sample sizes by formula: what a test of fixed horizon needs.

use super::numeric::normal_quantile;

/// Units that a two-sided test of fixed horizon needs in all buckets together, so that each pair of the baseline and another bucket
/// has its share. `weights` are the buckets' shares, `variances` those of one observation in the baseline and in the other bucket,
/// `difference` is absolute, `alpha` and `power` lie in (0, 1).
pub fn fixed_horizon(weights: &[f64], baseline: usize, variances: (f64, f64), difference: f64, alpha: f64, power: f64) -> f64 {
    let z = normal_quantile(1.0 - alpha / 2.0) + normal_quantile(power);
    let pair = |w: f64| (variances.0 / weights[baseline] + variances.1 / w) * (z / difference).powi(2);
    let others = weights.iter().enumerate().filter(|(i, w)| *i != baseline && **w > 0.0);
    others.map(|(_, w)| pair(*w)).fold(0.0, f64::max)
}

/// Days until so many units have come at `per_day` of full traffic, through the steps of a ramp: the share of the traffic, 0..=1, and the
/// step's length in days. The last one goes on.
pub fn days(per_day: f64, ramp: &[(f64, Option<f64>)], units: f64) -> f64 {
    let (mut days, mut rest) = (0.0, units);
    for (i, (traffic, length)) in ramp.iter().enumerate() {
        let rate = per_day * traffic;
        let length = length.filter(|_| i + 1 < ramp.len()).unwrap_or(f64::INFINITY);
        if rest <= rate * length {
            return days + rest / rate;
        }
        (days, rest) = (days + length, rest - rate * length);
    }
    days
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_takes_its_time() {
        assert_eq!(days(1_000.0, &[(1.0, None)], 2_500.0), 2.5);
        let ramp = [(0.1, Some(1.0)), (1.0, Some(1.0))];
        assert_eq!((days(1_000.0, &ramp, 50.0), days(1_000.0, &ramp, 600.0)), (0.5, 1.5));
    }

    #[test]
    fn the_formula_gives_the_textbook_number() {
        // 10% against 12%, alpha 5% two-sided, power 80%: (1.959964 + 0.841621)^2 (0.09 + 0.1056) / 0.02^2 = 3,838 in each bucket.
        let total = fixed_horizon(&[0.5, 0.5], 0, (0.09, 0.1056), 0.02, 0.05, 0.8);
        assert!((total / 2.0 - 3_838.0).abs() < 1.0, "{total}");
        // Unequal shares need more in all.
        assert!(fixed_horizon(&[0.9, 0.1], 0, (0.09, 0.1056), 0.02, 0.05, 0.8) > 2.0 * total);
    }
}
