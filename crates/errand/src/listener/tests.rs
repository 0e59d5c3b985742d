use super::*;

#[test]
fn clients_leave_descriptors_to_everything_else() {
    for (all, most) in [(64, 12), (128, 44), (1024, 492), (65_536, 32_748), (10, 4)] {
        assert_eq!(connections_max(Some(all)), most, "of {all}");
    }
    assert_eq!(connections_max(None), UNLIMITED);
}

#[test]
fn a_new_connection_replaces_the_longest_idle_one() {
    let connections = Connections::new(3);
    let held: Vec<Held> = (0..3).map(|_| connections.open().unwrap()).collect();
    // The first connection was used last.
    connections.begin(held[0].number);
    connections.end(held[0].number);
    // The second connection is busy.
    connections.begin(held[1].number);
    let fourth = connections.open().unwrap();
    let closed: Vec<bool> = held.iter().map(|held| held.close.is_cancelled()).collect();
    assert_eq!(closed, [false, false, true]);
    let _fifth = connections.open().unwrap();
    assert!(held[0].close.is_cancelled() && !fourth.close.is_cancelled());
    assert_eq!(connections.count(), 3);
}

#[test]
fn a_new_connection_is_refused_if_all_are_busy() {
    let connections = Connections::new(2);
    let held: Vec<Held> = (0..2).map(|_| connections.open().unwrap()).collect();
    for held in &held {
        connections.begin(held.number);
    }
    assert!(connections.open().is_none());
    connections.end(held[1].number);
    assert!(connections.open().is_some());
    drop(held);
    assert_eq!(connections.count(), 0);
}
