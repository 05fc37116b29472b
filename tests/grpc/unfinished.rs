//! Messages that are begun and not finished.

use super::*;

/// The status that a stream ends with, past its answers.
async fn ended(response: h2::client::ResponseFuture) -> String {
    let response = timeout(PATIENCE, response).await.expect("in time").expect("a response");
    let mut body = response.into_body();
    let rest = async {
        while let Some(data) = body.data().await {
            let data = data.expect("data");
            body.flow_control().release_capacity(data.len()).expect("released");
        }
        body.trailers().await.expect("an end").expect("trailers")
    };
    let trailers = timeout(PATIENCE, rest).await.expect("the stream ends in time");
    let text = |name: &str| trailers.get(name).map_or("", |text| text.to_str().expect("text"));
    format!("{} {}", text("grpc-status"), text("grpc-message"))
}

#[tokio::test]
async fn half_a_message_ends_its_stream_in_time_and_silence_between_messages_does_not() {
    let server = Server::start("[ingress]\nrequest_timeout_ms = 400\n");
    let client = http2(&server, 65_535).await;
    let token = server.token("im", "publisher", &["*"]);
    let message = |n| framed(&request(n, "r", vec![event(&n.to_string(), "chat", "1")]));

    let mut open = client.clone().ready().await.expect("ready");
    let (patient, mut quiet) = open.send_request(call(&token), false).expect("sent");
    quiet.send_data(message(1), false).expect("sent");

    // Half of one behind a whole one, and then byte by byte: that is no progress.
    let mut open = client.clone().ready().await.expect("ready");
    let (response, mut body) = open.send_request(call(&token), false).expect("sent");
    let second = message(2);
    body.send_data([&message(1)[..], &second[..7]].concat().into(), false).expect("sent");
    let dripping = async {
        for byte in &second[7..second.len() - 1] {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if body.send_data(Bytes::copy_from_slice(&[*byte]), false).is_err() {
                return;
            }
        }
        panic!("{} bytes of {} were taken one by one", second.len() - 1, second.len());
    };
    let (status, ()) = tokio::join!(ended(response), dripping);
    assert!(status.starts_with("4 message_timeout"), "{status}");
    let counted = server.metric("tidegate_grpc_requests_total{result=\"message_timeout\"}");
    assert_eq!(counted, 1.0);
    server.wait_metric("tidegate_grpc_requests_total{result=\"answered\"}", 2.0);

    // The other stream was silent for longer than that.
    quiet.send_data(message(3), true).expect("still open");
    assert!(ended(patient).await.starts_with("0 "));
    server.wait_metric("tidegate_grpc_requests_total{result=\"answered\"}", 3.0);
}
