//! Compiles the protobuf schema with a pure-Rust compiler, so that a fresh
//! machine needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files =
        protox::compile(["tidegate/v1/room.proto", "tidegate/v1/publisher.proto"], ["proto"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;
    Ok(())
}
