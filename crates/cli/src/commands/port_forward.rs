use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use api::cri::v1::PortForwardRequest;
use clap::Args;
use tokio::{net::TcpListener, task::JoinSet};

use super::Context;
use crate::{client::Node, error::Error, find, output, stream::forward};

/// Make ports of a pod ports of this node
///
/// Until ^C. Each connection made to a local port is joined to the pod's own, as a program inside the pod would make it.
#[derive(Debug, Args)]
pub struct PortForward {
    /// Address of this node to listen at
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "ADDRESS")]
    address: IpAddr,
    /// The pod
    pod: String,
    /// Ports: 8080:80 from here to the pod's; 80 for the same one; :80 for any free one here
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    ports: Vec<Ports>,
}

/// A port here and one of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    /// 0: any free one.
    local: u16,
    remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let number = |text: &str| text.parse().ok().filter(|port: &u16| *port != 0);
        let local = if local.is_empty() { Some(0) } else { number(local) };
        match (local, number(remote)) {
            (Some(local), Some(remote)) => Ok(Self { local, remote }),
            _ => Err("write LOCAL:REMOTE, :REMOTE or REMOTE, with ports from 1 to 65535".to_owned()),
        }
    }
}

impl PortForward {
    pub async fn run(self, cx: &Context) -> Result<Infallible, Error> {
        let node = cx.connect().await?;
        let pod = find::pod(&node, &self.pod).await?.id;
        url(&node, &pod, &self.ports).await?; // what cannot be, is said before anything listens
        let mut listening = JoinSet::new();
        for ports in self.ports {
            let address = SocketAddr::new(self.address, ports.local);
            let failed = |source| Error::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            output::print(format_args!("Forwarding from {address} -> {}\n", ports.remote))?;
            listening.spawn(accept(listener, node.clone(), pod.clone(), ports));
        }
        loop {
            if let Some(Ok(Err(error))) = listening.join_next().await {
                return Err(error);
            }
        }
    }
}

/// Serves whoever connects, until the pod is gone.
async fn accept(listener: TcpListener, node: Node, pod: String, ports: Ports) -> Result<Infallible, Error> {
    loop {
        let accepted = listener.accept().await;
        let url = url(&node, &pod, &[ports]).await?;
        let Ok((local, _)) = accepted else { continue };
        tokio::spawn(async move {
            if let Err(error) = forward::join(&url, ports.remote, local).await {
                eprintln!("meridian: {}", Error::from(error).chain());
            }
        });
    }
}

/// A URL good for one connection to these ports.
async fn url(node: &Node, pod: &str, ports: &[Ports]) -> Result<String, Error> {
    let port = ports.iter().map(|ports| ports.remote.into()).collect();
    let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port };
    let reply = node.runtime.clone().port_forward(request).await;
    Ok(reply.map_err(Error::refused(format!("forward ports of pod {pod}")))?.into_inner().url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!("8080:80".parse(), Ok(Ports { local: 8080, remote: 80 }));
        assert_eq!("80".parse(), Ok(Ports { local: 80, remote: 80 }));
        assert_eq!(":80".parse(), Ok(Ports { local: 0, remote: 80 }));
        for wrong in ["", ":", "0", "0:80", "80:0", "80:", "x", "1:2:3", "65536", "-1"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong:?}");
        }
    }
}
