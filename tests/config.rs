//! Configuration as a whole: the shipped file, the environment, and mistakes.

#![allow(clippy::unwrap_used, reason = "a failing test names its line")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use tidegate::config::{Config, ConfigErrors, ConfigOrigin};
use tidegate::engine::ids::Tier;
use tidegate::engine::kind::{Lane, Merge, MergeBy};
use tidegate::limits::keyed::Rate;

const KEY: &str = r#"keys = [{ id = "a", secret = "0123456789abcdef0123456789abcdef" }]"#;

fn shipped() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tidegate.toml");
    fs::read_to_string(path).unwrap()
}

fn load(text: &str) -> Result<Config, ConfigErrors> {
    Config::from_toml(text, std::iter::empty())
}

fn with_env(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Config::from_toml(text, variables.iter().map(own))
}

/// The mistakes in `text`, one per line as they are printed.
fn mistakes(text: &str) -> Vec<String> {
    let errors = load(text).expect_err(text);
    errors.0.iter().map(ToString::to_string).collect()
}

/// The only mistake in `text`.
fn mistake(text: &str) -> String {
    let all = mistakes(text);
    assert_eq!(all.len(), 1, "{all:#?}");
    all[0].clone()
}

/// Every leaf of `value` with its path.
fn leaves(value: &toml::Value, path: &str, found: &mut Vec<(String, toml::Value)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(value, &path, found);
            }
        }
        leaf => found.push((path.to_owned(), leaf.clone())),
    }
}

fn default_leaves() -> Vec<(String, toml::Value)> {
    let mut found = Vec::new();
    leaves(&toml::Value::try_from(Config::default()).unwrap(), "", &mut found);
    found
}

fn leaf(config: &Config, path: &str) -> toml::Value {
    let mut found = Vec::new();
    leaves(&toml::Value::try_from(config).unwrap(), "", &mut found);
    found.into_iter().find(|(p, _)| p == path).unwrap_or_else(|| panic!("no {path}")).1
}

#[test]
fn nothing_given_is_the_default_and_the_default_is_sound() {
    let loaded = Config::load(None, std::iter::empty()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.origin, ConfigOrigin::default());
    assert!(loaded.config.demo(&loaded.origin));
    assert!(!loaded.config.demo(&ConfigOrigin { file: Some(PathBuf::from("x")) }));
}

#[test]
fn the_shipped_file_is_exactly_the_default_with_no_field_missing() {
    assert_eq!(load(&shipped()).unwrap(), Config::default());
    let mut written = Vec::new();
    leaves(&toml::from_str(&shipped()).unwrap(), "", &mut written);
    assert_eq!(written, default_leaves());
}

#[test]
fn the_shipped_file_mentions_every_optional_field() {
    for field in ["demo", "jwks_file", "audience", "issuer"] {
        assert!(shipped().contains(&format!("\n# {field} = ")), "{field}");
    }
}

#[test]
fn every_field_of_the_shipped_file_has_a_comment() {
    let text = shipped();
    let sections = text.split("[kinds.").next().unwrap();
    let lines: Vec<&str> = sections.lines().collect();
    for pair in lines.windows(2) {
        if pair[1].contains(" = ") && !pair[1].starts_with('#') {
            assert!(pair[0].starts_with("# "), "{} has no comment", pair[1]);
        }
    }
}

#[test]
fn the_environment_overrides_every_leaf() {
    let changed = |path: &str, value: &toml::Value| -> String {
        match (path, value) {
            ("server.listen", _) => "127.0.0.1:9000".into(),
            ("server.admin_listen", _) => "127.0.0.1:9001".into(),
            ("rooms.enter_kind" | "rooms.leave_kind", _) => "enter".into(),
            ("durable.directory", _) => "elsewhere".into(),
            ("trace.otlp_endpoint", _) => "http://collector:4318".into(),
            ("trace.otlp_ca", _) => certificate().0.into(),
            ("trace.service_name", _) => "edge".into(),
            ("tls.certificate", _) => certificate().0.into(),
            ("tls.key", _) => certificate().1.into(),
            ("tls.plaintext", _) => "never".into(),
            ("quic.congestion", _) => "cubic".into(),
            ("log.filter", _) => "warn".into(),
            ("log.format", _) => "json".into(),
            ("websocket.allowed_origins", _) => r#"["https://a.example"]"#.into(),
            ("auth.keys", _) => KEY.strip_prefix("keys = ").unwrap().into(),
            (_, toml::Value::Boolean(flag)) => (!flag).to_string(),
            // Down, where up would break a rule between two fields.
            (path, toml::Value::Integer(number)) if path.ends_with("_bytes") && *number > 1 => {
                (number - 1).to_string()
            }
            (path, toml::Value::Integer(number)) if path.ends_with(".tier") && *number == 63 => {
                (number - 1).to_string()
            }
            (_, toml::Value::Integer(number)) => (number + 1).to_string(),
            (_, toml::Value::String(text)) => match text.as_str() {
                "important" => "ordered".into(),
                "ordered" | "sampled" => "important".into(),
                "append" | "latest" => "sum".into(),
                "sum" | "sample" => "append".into(),
                "logged" => "received".into(),
                "key" => "user_key".into(),
                "user_key" => "key".into(),
                other => panic!("what to do with {path} = {other:?}?"),
            },
            other => panic!("what to do with {other:?}?"),
        }
    };
    let mut seen = 0;
    for (path, default) in default_leaves() {
        let name = format!("TIDEGATE__{}", path.replace('.', "__").to_uppercase());
        let value = changed(&path, &default);
        let mut variables = vec![(name.as_str(), value.as_str())];
        // Fields that only make sense together are changed together.
        let companions = companions(&path);
        variables.extend(companions.iter().map(|(name, value)| (name.as_str(), *value)));
        let config = with_env("", &variables).unwrap_or_else(|errors| panic!("{name}: {errors}"));
        if path == "default_kinds" {
            assert!(config.kinds.is_empty() && !config.default_kinds);
        } else {
            assert_ne!(leaf(&config, &path), default, "{name}={value} changed nothing");
        }
        seen += 1;
    }
    assert!(seen > 150, "{seen} leaves");
}

/// Files with a certificate and its key.
fn certificate() -> (&'static str, &'static str) {
    static FILES: OnceLock<(tempfile::TempDir, [String; 2])> = OnceLock::new();
    let (_, [certificate, key]) = FILES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let texts = [made.cert.pem(), made.signing_key.serialize_pem()];
        let paths = ["certificate.pem", "key.pem"].map(|name| folder.path().join(name));
        for (path, text) in paths.iter().zip(texts) {
            std::fs::write(path, text).unwrap();
        }
        let names = paths.map(|path| path.to_str().unwrap().to_owned());
        (folder, names)
    });
    (certificate, key)
}

#[test]
fn a_collector_s_address_authority_and_headers_are_checked_without_telling_secrets() {
    let about = |text: &str| mistake(&format!("[trace]\n{text}\n"));
    let ca = certificate().0;
    for (text, expected) in [
        ("otlp_endpoint = \"collector:4318\"", "trace.otlp_endpoint"),
        ("otlp_endpoint = \"https://u:s3cret@collector\"", "trace.otlp_endpoint"),
        ("otlp_ca = \"nowhere.pem\"", "nowhere.pem cannot be read"),
        ("otlp_headers = { \"a b\" = \"s3cret\" }", "trace.otlp_headers"),
        ("otlp_headers = { host = \"s3cret\" }", "trace.otlp_headers"),
        ("otlp_headers = { a = [\"s3cret\"] }", "trace.otlp_headers.a"),
    ] {
        let said = about(text);
        assert!(said.contains(expected) && !said.contains("s3cret"), "{text}: {said}");
    }
    let clear = about(&format!("otlp_endpoint = \"http://c:1\"\notlp_ca = {ca:?}"));
    assert!(clear.contains("trace.otlp_ca") && clear.contains("https://"), "{clear}");
    let good = format!("[trace]\notlp_endpoint = \"https://c:1\"\notlp_ca = {ca:?}\n");
    let environment = [("TIDEGATE__TRACE__OTLP_HEADERS__AUTHORIZATION", "12345")];
    let config = with_env(&good, &environment).expect("sound");
    assert_eq!(config.trace.headers().expect("headers")["authorization"], "12345");
}

/// What must change with `path` so that no rule between fields is broken.
fn companions(path: &str) -> Vec<(String, &'static str)> {
    let Some((kind, field)) = path.rsplit_once('.') else { return Vec::new() };
    let prefix = format!("TIDEGATE__{}__", kind.replace('.', "__").to_uppercase());
    let set = |fields: &[(&str, &'static str)]| {
        fields.iter().map(|(field, value)| (format!("{prefix}{field}"), *value)).collect()
    };
    match (field, kind) {
        ("certificate", "tls") => set(&[("KEY", certificate().1)]),
        ("key", "tls") => set(&[("CERTIFICATE", certificate().0)]),
        ("idle_reset_ms", "kinds.gift") => Vec::new(),
        ("idle_reset_ms", _) => set(&[("MERGE", "sum"), ("BY", "user_key")]),
        ("lane", "kinds.follow" | "kinds.fansclub" | "kinds.enter") => set(&[("MERGE", "append")]),
        ("by", "kinds.gift") => set(&[("IDLE_RESET_MS", "0")]),
        _ => Vec::new(),
    }
}

#[test]
fn the_environment_sets_optional_fields_too() {
    let jwks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jwks.json");
    let config = with_env(
        "",
        &[
            ("TIDEGATE__SERVER__DEMO", "false"),
            ("TIDEGATE__AUTH__JWKS_FILE", jwks.to_str().unwrap()),
            // A string that reads as a number.
            ("TIDEGATE__AUTH__AUDIENCE", "42"),
            ("TIDEGATE__AUTH__ISSUER", "https://login.example"),
            ("TIDEGATE__KINDS__NEW__MERGE", "sample"),
            ("TIDEGATE__KINDS__NEW__LANE", "sampled"),
            ("TIDEGATE__KINDS__NEW__N", "7"),
            ("HOME", "/root"),
            ("TIDEGATE_SERVICE_HOST", "a variable of Kubernetes, not ours"),
        ],
    )
    .unwrap();
    assert_eq!(config.server.demo, Some(false));
    assert_eq!(config.auth.jwks_file, Some(jwks));
    assert_eq!(config.auth.audience.as_deref(), Some("42"));
    assert_eq!(config.kinds().resolve("new").merge, Merge::Sample(7));
}

#[test]
fn the_environment_wins_over_the_file_and_is_named_in_errors() {
    let text = "[rooms]\nmax_keys = 5\n";
    let config = with_env(text, &[("TIDEGATE__ROOMS__MAX_KEYS", "6")]).unwrap();
    assert_eq!(config.rooms.max_keys, 6);

    let variables = [
        ("TIDEGATE__ROOMS__MAX_KEYS", "0"),
        ("TIDEGATE__ROOMS__MAX_KYES", "1"),
        ("TIDEGATE__SERVER__SHARDS", "many"),
        ("TIDEGATE__NOTHING", "1"),
        ("TIDEGATE____", "1"),
    ];
    let text = with_env("", &variables).unwrap_err().to_string();
    for (name, _) in variables {
        assert!(text.contains(name), "{name} in {text}");
    }
    assert!(text.contains("did you mean `max_keys`?"), "{text}");
}

#[test]
fn a_kind_is_merged_over_the_built_in_one() {
    let config = load("[kinds.chat]\ntier = 7\n[kinds.gift]\nmerge = \"append\"\n").unwrap();
    let default = Config::default();
    assert_eq!(config.kinds["chat"].tier, 7);
    assert!(config.kinds["chat"].viewer_publish, "what is not mentioned stays");
    assert_eq!(config.kinds["gift"].by, None, "and leaves with its merge rule");
    assert_eq!(config.kinds["gift"].idle_reset_ms, 0);
    assert_eq!(config.kinds["coupon"], default.kinds["coupon"]);
    assert_eq!(config.kinds.len(), default.kinds.len());
}

#[test]
fn without_built_in_kinds_only_the_written_ones_exist() {
    let config = load("default_kinds = false\n[kinds.chat]\ntier = 7\n").unwrap();
    assert_eq!(config.kinds.keys().collect::<Vec<_>>(), ["chat"]);
    assert!(!config.kinds["chat"].viewer_publish);
    assert!(load("default_kinds = false").unwrap().kinds.is_empty());
}

#[test]
fn kinds_and_rooms_reach_the_engine_as_configured() {
    let config = load("[kinds.gift]\nttl_ms = 5\n[rooms]\nflush_interval_ms = 250\n").unwrap();
    let kinds = config.kinds();
    let gift = kinds.resolve("gift");
    assert_eq!((gift.lane, gift.merge), (Lane::Ordered, Merge::Sum(MergeBy::UserKey)));
    assert_eq!(gift.ttl, Some(Duration::from_millis(5)));
    assert_eq!(gift.idle_reset, Some(Duration::from_secs(60)));
    assert_eq!(kinds.resolve("enter").merge, Merge::Sample(3));
    assert_eq!(kinds.resolve("chat").ttl, None);
    let unknown = kinds.resolve("never heard of");
    assert_eq!((unknown.lane, unknown.tier), (Lane::Ordered, Tier::LOWEST));
    assert!(!unknown.viewer_publish);
    assert_eq!(config.room_settings().flush_interval, Duration::from_millis(250));
}

#[test]
fn ten_mistakes_are_named_at_once() {
    let text = r#"
colour = "blue"
[server]
lisen = "127.0.0.1:1"
shards = -3
admin_listen = "nowhere"
[websocket]
compression = "yes"
compression_level = 12
allowed_origins = ["https://a.example/path", "*"]
[rooms]
reserved_percent = 91
[log]
format = "xml"
[kinds.chat]
merge = "sample"
[kinds.shout]
lane = "loud"
"#;
    let errors = load(text).unwrap_err();
    let paths: BTreeSet<&str> = errors.0.iter().map(|error| error.path.as_str()).collect();
    let expected = BTreeSet::from([
        "colour",
        "server.lisen",
        "server.shards",
        "server.admin_listen",
        "websocket.compression",
        "websocket.compression_level",
        "websocket.allowed_origins[0]",
        "rooms.reserved_percent",
        "log.format",
        "kinds.chat.n",
        "kinds.chat.merge",
        "kinds.shout.lane",
    ]);
    assert_eq!(paths, expected, "{errors}");
    for error in &errors.0 {
        assert!(!error.allowed.is_empty(), "{error} says what is allowed");
        assert!(error.origin.starts_with("line "), "{error} says where");
    }
    let text = errors.to_string();
    assert!(text.contains("server.lisen: unknown field, did you mean `listen`?"), "{text}");
    assert!(
        text.contains("server.shards: is -3; allowed: a whole number from 0 to 65535 (line 5)")
    );
    assert!(text.contains("rooms.reserved_percent: is 91; allowed: 0 to 90 (line 12)"), "{text}");
}

#[test]
fn a_syntax_error_names_line_and_column() {
    let text = mistakes("[server]\nlisten = \n").join("\n");
    assert!(text.contains("not valid TOML") && text.contains("line 2, column"), "{text}");
    let twice = mistakes("[server]\nshards = 1\nshards = 2\n").join("\n");
    assert!(twice.contains("duplicate key") && twice.contains("line 3"), "{twice}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Some(Path::new("/nonexistent/x.toml")), std::iter::empty());
    assert!(error.unwrap_err().to_string().contains("/nonexistent/x.toml"));
}

#[test]
fn without_keys_only_loopback_is_listened_on() {
    for address in ["0.0.0.0:7400", "192.0.2.1:7400", "[::]:7400", "[::ffff:192.0.2.1]:7400"] {
        let text = mistake(&format!("[server]\nlisten = {address:?}\n"));
        assert!(text.starts_with("server.listen: ") && text.contains("no keys"), "{text}");
        load(&format!("[auth]\n{KEY}\n[server]\nlisten = {address:?}\n")).unwrap();
    }
    assert!(
        mistake("[server]\nadmin_listen = \"0.0.0.0:7401\"").starts_with("server.admin_listen")
    );
    load("[server]\nlisten = \"[::1]:7400\"\nadmin_listen = \"127.0.0.9:7401\"").unwrap();
    // A key that cannot be read is one mistake, not also a missing key.
    let bad_key = "[server]\nlisten = \"0.0.0.0:7400\"\n[auth]\nkeys = 3\n";
    assert!(mistake(bad_key).starts_with("auth.keys: "));
}

#[test]
fn two_listeners_need_two_addresses() {
    let same = "[server]\nlisten = \"127.0.0.1:9\"\nadmin_listen = \"127.0.0.1:9\"";
    assert!(mistake(same).starts_with("server.admin_listen: is 127.0.0.1:9"));
    load("[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"").unwrap();
}

#[test]
fn fields_that_contradict_one_another_are_refused() {
    let rows = [
        ("[rooms]\nflush_events = 3000", "rooms.flush_events"),
        ("[rooms]\nflush_bytes = 2000000", "rooms.flush_bytes"),
        ("[delivery]\nno_sampled_bytes = 100000", "rooms.frame_bytes"),
        ("[delivery]\nno_sampled_frames = 0", "delivery.no_sampled_frames"),
        ("[delivery]\nno_sampled_frames = 129", "delivery.no_sampled_frames"),
        ("[delivery]\ntotals_only_bytes = 300000", "delivery.totals_only_bytes"),
        ("[delivery]\nrebase_ms = 9999", "delivery.important_only_ms"),
        ("[delivery]\nrecover_percent = 101", "delivery.recover_percent"),
        ("[websocket]\nmax_message_bytes = 2048", "kinds.chat.max_payload_bytes"),
        ("[kinds.big]\nmax_payload_bytes = 131072", "kinds.big.max_payload_bytes"),
        ("[kinds.a]\nlane = \"sampled\"\nmerge = \"sample\"", "kinds.a.n"),
        ("[kinds.a]\nn = 3", "kinds.a.n"),
        ("[kinds.a]\nmerge = \"append\"\nby = \"key\"", "kinds.a.by"),
        ("[kinds.a]\nlane = \"ordered\"\nmerge = \"sample\"\nn = 1", "kinds.a.merge"),
        ("[kinds.a]\nmerge = \"sum\"\nidle_reset_ms = 1", "kinds.a.idle_reset_ms"),
        ("[kinds.a]\ntier = 64", "kinds.a.tier"),
        ("[unknown_kind]\ntier = 64", "unknown_kind.tier"),
        ("[kinds.\"a b\"]\ntier = 1", "kinds.a b"),
        ("[kinds.a__b]\ntier = 1", "kinds.a__b"),
        ("[log]\nfilter = \"tidegate=loud\"", "log.filter"),
        ("[auth]\naudience = \"\"", "auth.audience"),
        ("server = [1]", "server"),
    ];
    for (text, path) in rows {
        let errors = load(text).expect_err(text);
        let named = errors.0.iter().any(|error| error.path == path);
        assert!(named, "{text:?} should name {path}: {errors}");
    }
}

#[test]
fn fixed_limits_reach_the_server_and_zero_is_none() {
    let config = load("[limits]\nroom_events_per_second = 7\nroom_burst = 9\nkeys = 5\nuser_events_per_second = 50\n").unwrap();
    let settings = config.limit_settings(3);
    assert_eq!(settings.room, Rate::new(7, 9));
    assert_eq!(settings.user, Rate::new(50, 100), "the default burst");
    assert_eq!((settings.client, settings.application), (None, None));
    assert_eq!((settings.keys, settings.seed), (5, 3));
    for (text, path) in [
        ("user_burst = 0", "limits.user_burst"),
        ("client_events_per_second = 100000001", "limits.client_events_per_second"),
        ("keys = 0", "limits.keys"),
    ] {
        let text = mistake(&format!("[limits]\n{text}\n"));
        assert!(text.starts_with(&format!("{path}: is ")), "{text}");
    }
    assert!(mistake("[ingress]\ngrpc_in_flight = 0\n").contains("1 to 10000"));
    assert!(mistake("[ingress]\nhttp2_streams = 0\n").contains("1 to 10000"));
}

#[test]
fn origins_are_scheme_and_host() {
    let origins = |list: &str| load(&format!("[websocket]\nallowed_origins = [{list}]"));
    origins("\"*\"").unwrap();
    origins("\"https://live.example\", \"http://localhost:8080\", \"http://[::1]:80\"").unwrap();
    for bad in
        ["live.example", "https://", "https://Live.example", "https://a.example/", "https://*"]
    {
        assert!(origins(&format!("{bad:?}")).is_err(), "{bad}");
    }
}

#[test]
fn secrets_are_checked_and_never_printed() {
    let rows = [
        (r#"{ id = "a", secret = "hunter2" }"#, "auth.keys[0].secret: has 7 bytes"),
        (r#"{ id = "a" }"#, "auth.keys[0].secret: is missing"),
        (r#"{ id = "a", secret_file = "/nonexistent/hunter2" }"#, "auth.keys[0].secret_file"),
        (r#"{ secret = "hunter2hunter2hunter2hunter2hunter2" }"#, "auth.keys[0].id: is missing"),
        (r#"{ id = "a", algorithm = "none" }"#, "auth.keys[0].algorithm: is \"none\""),
        (r#"{ id = "a", secrt = "x" }"#, "did you mean `secret`?"),
        (r#"{ id = "a", secret = "hunter2", secret_file = "x" }"#, "both secret and secret_file"),
    ];
    for (key, expected) in rows {
        let text = mistakes(&format!("[auth]\nkeys = [{key}]")).join("\n");
        assert!(text.contains(expected), "{key}: {text}");
        assert!(!text.contains("\"hunter2"), "{text}");
    }
    let twice = format!("[auth]\n{}", KEY.replace("}]", "}, ") + &KEY[8..]);
    assert!(mistake(&twice).starts_with("auth.keys[1].id: another key has the id \"a\""));
}

#[test]
fn a_secret_may_stand_in_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!("[auth]\nkeys = [{{ id = \"a\", secret_file = {:?} }}]", file.path());
    fs::write(file.path(), "0123456789abcdef0123456789abcdef\n").unwrap();
    load(&text).unwrap();
    fs::write(file.path(), "0123456789abcdef0123456789abcde\n\n").unwrap();
    assert!(mistake(&text).contains("has 31 bytes"), "line ends do not count");
}

#[test]
fn a_key_set_holds_only_keys_that_verify_signatures() {
    let good: serde_json::Value = serde_json::from_slice(
        &fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jwks.json")).unwrap(),
    )
    .unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = format!("[auth]\njwks_file = {:?}", file.path());
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut set = good.clone();
        change(&mut set["keys"]);
        fs::write(file.path(), set.to_string()).unwrap();
        load(&config)
    };
    with(&|_| {}).unwrap();
    with(&|keys| keys[0]["x5c"] = "ignored".into()).unwrap();

    type Change = fn(&mut serde_json::Value);
    let rows: [(Change, &str); 11] = [
        (|keys| drop(keys[0].as_object_mut().unwrap().remove("alg")), "has no alg"),
        (|keys| keys[0]["alg"] = "none".into(), "has an alg we do not take"),
        (|keys| keys[0]["alg"] = "HS256".into(), "has an alg we do not take"),
        (|keys| keys[0]["alg"] = "ES256".into(), "does not fit its alg"),
        (|keys| keys[0]["n"] = "AQAB".into(), "does not fit its alg"),
        (|keys| keys[0]["e"] = "AQ".into(), "does not fit its alg"),
        (|keys| keys[1]["crv"] = "P-384".into(), "does not fit its alg"),
        (|keys| keys[2]["x"] = "AQAB".into(), "does not fit its alg"),
        (|keys| keys[2]["d"] = "AQAB".into(), "is a private key"),
        (|keys| keys[2]["use"] = "enc".into(), "is not for signatures"),
        (|keys| keys[2]["kid"] = "rsa".into(), "another key has the id"),
    ];
    for (change, expected) in rows {
        let text = with(&change).unwrap_err().to_string();
        assert!(text.contains(expected), "{expected}: {text}");
    }
    with(&|keys| drop(keys[2].as_object_mut().unwrap().remove("kid"))).unwrap_err();
    for text in ["", "[]", "{\"keys\": []}", "-----BEGIN PUBLIC KEY-----"] {
        fs::write(file.path(), text).unwrap();
        assert!(mistake(&config).starts_with("auth.jwks_file: "), "{text:?}");
    }
}
