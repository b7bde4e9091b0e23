//! Sorting of a pane's observations.

use super::pane::Observation;

/// A stable sort. Cells are few for the observations of a busy pane, so that they are dealt out digit by digit: the price is two passes,
/// whatever the number of experiments.
pub fn sort_by_cell(observations: &mut Vec<Observation>) {
    const DIGIT: u32 = 8;
    let highest = observations.iter().map(|o| o.cell).max().unwrap_or(0);
    if observations.len() < 1 << DIGIT {
        observations.sort_by_key(|o| o.cell);
        return;
    }
    let mut dealt = observations.clone();
    for shift in (0..u32::BITS - highest.leading_zeros()).step_by(DIGIT as usize) {
        let digit = |o: &Observation| (o.cell >> shift) as usize & ((1 << DIGIT) - 1);
        let mut next = [0_usize; 1 << DIGIT];
        observations.iter().for_each(|o| next[digit(o)] += 1);
        let mut before = 0;
        for place in &mut next {
            before += std::mem::replace(place, before);
        }
        for o in observations.iter() {
            let place = &mut next[digit(o)];
            dealt[*place] = *o;
            *place += 1;
        }
        std::mem::swap(observations, &mut dealt);
    }
}
