use super::*;

fn o(cell: CellId, age: u32, value: u16) -> Observation {
    Observation { cell, age, value, batch: 0, profile: NO_PROFILE }
}

#[test]
fn partials_hold_what_is_theirs_in_the_order_of_partitions() {
    let mut seen = [Seen::default(), Seen::default()];
    [o(4, 0, 1), o(0, 0, traffic::EVENT), o(3, 2, traffic::FIRST_EXPOSURE), o(4, 0, 2)].into_iter().for_each(|o| seen[0].see(o));
    seen[1].see(o(4, 0, 3));
    seen[1].abandon(Abandoned { cell: 9, begun: Pane(1), age: 0, batch: 0, profile: NO_PROFILE }, Pane(5));
    seen[1].add(4, Part { age: 0, profile: NO_PROFILE, n: 1, sums: Sums { y: 2.0, ..Sums::default() } });
    seen[0].controls.push((2, Control::Annotation { at: 0, text: "t".into(), author: None }));
    let mut pool = Pool::default();
    pool.fill(seen.iter_mut().map(Seen::close).collect(), &mut Vec::new());
    // Cells 0 to 2, 3 to 5, none, 6 to 9.
    let found: Vec<_> = pool.partials(&[0, 3, 6, 6, 10]).collect();
    assert_eq!(found.iter().map(|(experiment, _)| *experiment).collect::<Vec<_>>(), [0, 1, 3]);
    let second = &found[1].1;
    assert_eq!(second.cell(1).observations.iter().map(|o| o.value).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(second.cell(1).sums.len(), 1);
    let traffic = second.cell(0).traffic();
    assert_eq!((traffic.exposures, traffic.new_units, traffic.enrolled_before), (1, 1, vec![(2, 1)]));
    assert_eq!(found[2].1.cell(3).workflows(Pane(5)).1.collect::<Vec<_>>(), [(Pane(1), 1)]);
    pool.fill(vec![Seen::default().close()], &mut Vec::new());
    assert_eq!(pool.partials(&[0, 3, 6, 6, 10]).count(), 0, "nothing of the pane before is left");
}

#[test]
fn a_pane_that_never_closes_is_bounded_and_counts_all() {
    let mut seen = Seen::default();
    for i in 0..SEEN_MAX + 300 {
        seen.see(o(1, i as u32, [HIT, 0, 0][i % 3]));
        seen.pass(o(0, 7, traffic::FIRST_EXPOSURE));
    }
    assert_eq!((seen.observations.len(), seen.surplus.len()), (SEEN_MAX, 3));
    let mut pool = Pool::default();
    pool.fill(vec![seen.close()], &mut Vec::new());
    let (_, partial) = pool.partials(&[0, 2]).next().unwrap();
    assert_eq!(partial.cell(1).share(), ((SEEN_MAX + 300) as u64, (SEEN_MAX + 300).div_ceil(3) as u64));
    assert_eq!(partial.cell(0).traffic().enrolled_before, [(7, (SEEN_MAX + 300) as u64)]);
}
