//! Health as load balancers ask for it, with a client of another make.

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

/// Waits until the server says that it is well; it looks every second.
async fn wait_well(client: &mut HealthClient<Channel>) {
    let serving = ServingStatus::Serving as i32;
    let well = async {
        while client.check(about("")).await.expect("answered").into_inner().status != serving {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, well).await.expect("well in time");
}

#[tokio::test]
async fn health_is_told_without_a_token_and_a_drain_is_told_to_those_who_watch() {
    let server = Server::start("");
    let mut client = HealthClient::new(channel(&server).await);
    wait_well(&mut client).await;
    let publisher = client.check(about("tidegate.v1.Publisher")).await.expect("answered");
    assert_eq!(publisher.into_inner().status(), ServingStatus::Serving);
    let unknown = client.check(about("tidegate.v1.Barber")).await.expect_err("there is none");
    assert_eq!(unknown.code(), Code::NotFound, "{unknown:?}");

    let mut changes = client.watch(about("")).await.expect("a stream").into_inner();
    let mut unknown = client.watch(about("nobody")).await.expect("a stream").into_inner();
    let next = async |changes: &mut Streaming<_>| {
        let change = timeout(PATIENCE, changes.message()).await.expect("in time").expect("good");
        change.map(|health: tonic_health::pb::HealthCheckResponse| health.status())
    };
    assert_eq!(next(&mut changes).await, Some(ServingStatus::Serving));
    assert_eq!(next(&mut unknown).await, Some(ServingStatus::ServiceUnknown));
    server.terminate();
    assert_eq!(next(&mut changes).await, Some(ServingStatus::NotServing));
    assert_eq!(next(&mut changes).await, None, "a drain does not wait for those who watch");
    assert_eq!(next(&mut unknown).await, None);
    let status = tokio::task::spawn_blocking(move || server.wait()).await.expect("waited");
    assert!(status.success());
}

#[tokio::test]
async fn those_who_watch_take_a_place_and_give_it_back() {
    // One place for the connection, one for a stream on it.
    let server = Server::start("[ingress]\nmax_connections = 2\n");
    let mut client = HealthClient::new(channel(&server).await);
    let changes = client.watch(about("")).await.expect("a stream");
    let refused = client.check(about("")).await.expect_err("no place is left");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    drop(changes);
    let free = async {
        while client.check(about("")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, free).await.expect("the place is given back");
}
