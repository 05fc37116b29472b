//! An authority, certificates of it, and clients that trust it.
#![allow(dead_code, reason = "each test crate uses its part of the kit")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use tidegate::trust::Trust;
use tungstenite::client::IntoClientRequest;

use crate::harness::{PATIENCE, Server, Viewer, now};

const DAY: Duration = Duration::from_secs(86_400);

/// A socket with TLS on it.
pub(crate) type TlsSocket = StreamOwned<ClientConnection, TcpStream>;

/// Certificates in a folder, signed by an authority of their own.
pub(crate) struct Certificates {
    folder: tempfile::TempDir,
    authority: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Certificates {
    /// With one that holds for 90 days.
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("signed");
        let authority = Issuer::new(params, key);
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("authority.pem"), root.pem()).expect("written");
        let root = root.der().clone();
        let certificates = Self { folder, authority, root };
        certificates.write(90);
        certificates
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new certificate and key in PEM. It began 100 days ago and ends in `days`.
    pub(crate) fn issue(&self, days: i64) -> (String, String, CertificateDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("names");
        let today = date_time_ymd(1970, 1, 1) + Duration::from_secs(now());
        params.not_before = today - DAY * 100;
        params.not_after =
            if days < 0 { today - DAY * -days as u32 } else { today + DAY * days as u32 };
        let made = params.signed_by(&key, &self.authority).expect("signed");
        (made.pem(), key.serialize_pem(), made.der().clone())
    }

    /// Puts a new one in place, the way a client of an authority would: the key
    /// first, each moved over the old one.
    pub(crate) fn write(&self, days: i64) -> CertificateDer<'static> {
        let (certificate, key, der) = self.issue(days);
        for (name, text) in [("key.pem", key), ("certificate.pem", certificate)] {
            std::fs::write(self.path("next"), text).expect("written");
            std::fs::rename(self.path("next"), self.path(name)).expect("moved");
        }
        der
    }

    /// `[tls]` with these files, and what is added to it.
    pub(crate) fn section(&self, extra: &str) -> String {
        format!(
            "[tls]\ncertificate = {:?}\nkey = {:?}\n{extra}\n",
            self.path("certificate.pem"),
            self.path("key.pem")
        )
    }

    /// The authority's certificate.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// A client that trusts the authority.
    pub(crate) fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("an anchor");
        trusting(roots, versions)
    }
}

/// A client that trusts these roots.
pub(crate) fn trusting(
    roots: RootCertStore,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Any version.
pub(crate) const ANY: &[&SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// A TLS connection to a server, after its handshake.
pub(crate) fn connect(server: &Server, config: &Arc<ClientConfig>) -> std::io::Result<TlsSocket> {
    let stream = TcpStream::connect(server.address).expect("connected");
    over(stream, config)
}

/// The same on a socket of the caller's.
pub(crate) fn over(stream: TcpStream, config: &Arc<ClientConfig>) -> std::io::Result<TlsSocket> {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::clone(config), name).expect("a client");
    let mut socket = StreamOwned::new(connection, stream);
    while socket.conn.is_handshaking() {
        socket.conn.complete_io(&mut socket.sock)?;
    }
    Ok(socket)
}

/// A viewer's connection on it.
pub(crate) fn upgrade(socket: TlsSocket, subprotocol: &str) -> Viewer<TlsSocket> {
    let mut request = "wss://localhost/v1/ws".into_client_request().expect("a request");
    let value = subprotocol.parse().expect("a header value");
    request.headers_mut().insert("Sec-WebSocket-Protocol", value);
    let (socket, _) = tungstenite::client(request, socket).expect("upgraded");
    Viewer { socket }
}

/// A viewer in a room.
pub(crate) fn viewer(
    server: &Server,
    config: &Arc<ClientConfig>,
    user: &str,
    room: &str,
) -> Viewer<TlsSocket> {
    let socket = connect(server, config).expect("a handshake");
    let mut viewer = upgrade(socket, "tidegate.v1.json");
    viewer.expect("welcome");
    viewer.join(room, &server.token(user, "viewer", &[room]));
    viewer.expect("joined");
    viewer
}

/// The certificate that a connection was shown.
pub(crate) fn shown(socket: &TlsSocket) -> CertificateDer<'static> {
    let chain = socket.conn.peer_certificates().expect("a certificate");
    chain[0].clone().into_owned()
}

/// The certificate of a server that nobody trusts yet.
pub(crate) fn presented(address: SocketAddr) -> CertificateDer<'static> {
    let client = Trust::Anything.client(&[]).expect("a client");
    let stream = TcpStream::connect(address).expect("connected");
    shown(&over(stream, &Arc::new(client)).expect("a handshake"))
}

/// SHA-256 over a certificate's DER.
pub(crate) fn sha256(certificate: &CertificateDer<'_>) -> Vec<u8> {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let sha256 = suite.tls13().expect("of TLS 1.3").common.hash_provider;
    sha256.hash(certificate).as_ref().to_vec()
}

/// Sends bytes on a connection and reads to its end, which must be said.
pub(crate) fn exchange(mut socket: TlsSocket, request: &[u8]) -> (u16, String) {
    socket.write_all(request).expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("answered to the end");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}
