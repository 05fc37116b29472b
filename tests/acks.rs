//! Acknowledgements on the real binary: who does as told is not held to have
//! said too much.

mod harness;

use harness::{Server, Viewer};
use serde_json::{Value, json};

const ALLOWANCE: &str = "[websocket]\nmessages_per_second = 1\nmessage_burst = 3\n";

fn acknowledging(server: &Server) -> Viewer {
    let mut viewer = server.connect();
    viewer.expect("welcome");
    let token = server.token("u", "viewer", &["r"]);
    viewer.send(&json!({"join": {"room": "r", "token": token, "acks": true}}));
    viewer.expect("joined");
    viewer
}

fn ack(viewer: &mut Viewer, important: &Value) {
    viewer.send(&json!({"ack": {"room": "r", "important": important}}));
}

#[test]
fn acknowledgements_that_were_asked_for_take_nothing_off_the_allowance() {
    let server = Server::start(ALLOWANCE);
    let mut viewer = acknowledging(&server);
    for i in 1..=30 {
        let event = json!([{"id": format!("p{i}"), "kind": "red_packet", "payload": i}]);
        assert_eq!(server.publish("r", event).0, 200);
        let frame = viewer.expect("frame");
        assert_eq!((&frame["important"], &frame["ack"]["one_in"]), (&json!(i), &json!(1)));
        ack(&mut viewer, &frame["important"]);
    }
    server.wait_metric("tidegate_important_confirmed_total", 30.0);
}

#[test]
fn acknowledgements_that_say_nothing_new_do() {
    let server = Server::start(ALLOWANCE);
    let mut viewer = acknowledging(&server);
    for _ in 0..20 {
        ack(&mut viewer, &json!(0));
    }
    assert_eq!(viewer.closed(), Some(3501));
}
