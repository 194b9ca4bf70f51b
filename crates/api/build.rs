//! Compiles proto/ without an installed protoc; one file per feature, so that the shim builds no gRPC code.

use std::{env, error::Error, fs, path::Path};

use prost::Message;

/// (feature, file below proto/, whether it has gRPC services)
const PROTOS: [(&str, &str, bool); 4] = [
    ("CRI", "cri/v1/api.proto", true),
    ("MERIDIAN", "meridian/v1/meridian.proto", true),
    ("PEER", "peer/v1/peer.proto", false),
    ("SHIM", "shim/v1/shim.proto", false),
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    for (feature, file, services) in PROTOS {
        if env::var_os(format!("CARGO_FEATURE_{feature}")).is_some() {
            let descriptors = protox::compile([root.join(file)], [&root])?;
            let set = Path::new(&env::var("OUT_DIR")?).join(format!("{}.fds", feature.to_lowercase()));
            fs::write(set, descriptors.encode_to_vec())?;
            tonic_prost_build::configure()
                .build_client(services)
                .build_server(services)
                // Memory pages: borrowed from the frame they came in, not copied.
                .bytes(".peer.v1")
                .compile_fds(descriptors)?;
        }
    }
    Ok(())
}
