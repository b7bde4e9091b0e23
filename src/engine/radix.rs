//! Sorting of a pane's observations.

use super::pane::Observation;

/// A stable sort. Cells are few for the observations of a busy pane, so that they are dealt out digit by digit: the price is two passes,
/// whatever the number of experiments. `dealt` is room for them, whatever it holds.
pub fn sort_by_cell(observations: &mut Vec<Observation>, dealt: &mut Vec<Observation>) {
    const DIGIT: u32 = 8;
    let highest = observations.iter().map(|o| o.cell).max().unwrap_or(0);
    if observations.len() < 1 << DIGIT {
        observations.sort_by_key(|o| o.cell);
        return;
    }
    dealt.clear();
    dealt.extend_from_slice(observations);
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
        std::mem::swap(observations, dealt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::segment::NO_PROFILE;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorting_is_stable(cells in prop::collection::vec(0..70_000u32, 0..2_000), scale in 1..400u32) {
            let o = |(i, cell): (usize, &u32)| Observation { cell: cell / scale, age: i as u32, value: 0, batch: 0, profile: NO_PROFILE };
            let mut sorted: Vec<Observation> = cells.iter().enumerate().map(o).collect();
            let mut expected = sorted.clone();
            expected.sort_by_key(|o| o.cell);
            // Whatever an earlier pane has left there.
            sort_by_cell(&mut sorted, &mut vec![o((0, &7)); 900]);
            prop_assert_eq!(sorted, expected);
        }
    }
}
