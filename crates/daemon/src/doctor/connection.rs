//! The pod network, and the registries' mirrors.

use std::fs;
use std::path::Path;
use std::time::Duration;

use api::meridian::v1::Check;
use futures_util::future::join_all;
use network::cni::CniConfig;
use pod::CniStatus;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Subject, fail, ok, warn};
use crate::config::Mirror;

/// How long a mirror may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// The CNI plugins where the node uses them, else the embedded bridge; and forwarding.
pub fn checks(subject: &Subject, cni: Option<CniStatus>) -> Vec<Check> {
    let config = &subject.config.network;
    let connection = match (&subject.config.cni, cni) {
        (Some(settings), Some(status)) => plugins(settings, status),
        _ => bridge(subject),
    };
    let mut checks = vec![connection, forwarding("net/ipv4/ip_forward", "net.ipv4.ip_forward")];
    if config.subnet6.is_some() {
        checks.push(forwarding("net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"));
    }
    checks
}

fn plugins(settings: &CniConfig, status: CniStatus) -> Check {
    let object = settings.config_dir.display().to_string();
    let cure = "mend the first list there, install its plugins in cni.plugin_dirs: pods have no network";
    match status.problem {
        None => ok("cni", object, "the plugins are ready"),
        Some(problem) => fail("cni", object, problem, cure),
    }
}

fn bridge(subject: &Subject) -> Check {
    let name = subject.config.network.bridge.as_str();
    let restart = "restart meridiand, which makes it; pods run on";
    match subject.network.is_bridge_up() {
        Ok(Some(true)) => ok("bridge", name, "up"),
        Ok(Some(false)) => {
            fail("bridge", name, "is down: pods have no network", &format!("ip link set {name} up"))
        }
        Ok(None) => fail("bridge", name, "is not there: pods have no network", restart),
        Err(error) => fail("bridge", name, error.to_string(), restart),
    }
}

fn forwarding(file: &str, key: &str) -> Check {
    match fs::read_to_string(Path::new("/proc/sys").join(file)) {
        Ok(value) if value.trim() == "1" => ok("forwarding", key, "on"),
        Ok(_) => {
            fail("forwarding", key, "off: pods reach nothing beyond this node", &format!("sysctl -w {key}=1"))
        }
        Err(error) => warn("forwarding", key, error.to_string(), "mount /proc writable"),
    }
}

/// Whether each configured mirror takes connections.
pub async fn mirrors(mirrors: &[Mirror]) -> Vec<Check> {
    join_all(mirrors.iter().map(mirror)).await
}

async fn mirror(mirror: &Mirror) -> Check {
    let cure = format!("start it, or take it out of image.mirror: pulls from {} wait for it", mirror.host);
    let found = match timeout(PATIENCE, TcpStream::connect(address(&mirror.endpoint))).await {
        Ok(Ok(_)) => return ok("mirror", &mirror.endpoint, format!("takes connections for {}", mirror.host)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no connection within {} s", PATIENCE.as_secs()),
    };
    warn("mirror", &mirror.endpoint, found, &cure)
}

/// `HOST:PORT` of a URL; the scheme says which port none means.
fn address(endpoint: &str) -> String {
    let url: http::Uri = endpoint.parse().unwrap_or_default();
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
    format!("{}:{port}", url.host().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn a_mirror_is_reached_where_its_url_says() {
        assert_eq!(address("http://127.0.0.1:5000"), "127.0.0.1:5000");
        assert_eq!(address("https://mirror.example/v2"), "mirror.example:443");
        assert_eq!(address("http://[fd00::1]"), "[fd00::1]:80");
    }
}
