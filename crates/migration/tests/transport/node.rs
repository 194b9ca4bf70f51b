//! Two nodes of one authority.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration::clock::Policy;
use migration::transport::{
    Epoch, EpochState, Estimate, Host, Identity, Journal, Move, MoveError, Report, move_pod, serve,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tokio::net::TcpListener;

use super::pod::{Diary, Leaving, Step, Taking, Trouble};

const ID: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

/// One node's secrets and memory.
pub struct Node {
    pub identity: Identity,
    pub journal: Arc<Journal>,
    _dir: tempfile::TempDir,
}

impl Node {
    /// Of an authority of its own.
    pub fn new(name: &str) -> Self {
        Self::of(&Authority::new(), name)
    }

    fn of(authority: &Authority, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |file: &str| dir.path().join(file);
        authority.sign(name, &at("crt"), &at("key"));
        std::fs::write(at("ca"), &authority.pem).unwrap();
        let identity = Identity::load(&at("crt"), &at("key"), &at("ca")).unwrap();
        Self { identity, journal: Arc::new(Journal::open(&at("migrations")).unwrap()), _dir: dir }
    }
}

struct Authority {
    key: KeyPair,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let pem = Self::params().self_signed(&key).unwrap().pem();
        Self { key, pem }
    }

    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn sign(&self, name: &str, certificate: &Path, key: &Path) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        let own = KeyPair::generate().unwrap();
        let issuer = Issuer::new(Self::params(), &self.key);
        std::fs::write(certificate, params.signed_by(&own, &issuer).unwrap().pem()).unwrap();
        std::fs::write(key, own.serialize_pem()).unwrap();
    }
}

/// A source with a pod and a destination that listens.
pub struct Pair {
    pub source_node: Node,
    pub target_node: Node,
    pub source: Leaving,
    taking: Arc<Mutex<Diary>>,
    address: String,
}

impl Pair {
    pub async fn start() -> Self {
        Self::with(None).await
    }

    pub async fn failing(step: Step) -> Self {
        Self::with(Some(Trouble { step, hang: false })).await
    }

    pub async fn hanging(step: Step) -> Self {
        Self::with(Some(Trouble { step, hang: true })).await
    }

    async fn with(trouble: Option<Trouble>) -> Self {
        let authority = Authority::new();
        let (source_node, target_node) = (Node::of(&authority, "source"), Node::of(&authority, "target"));
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let address = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let taking = Arc::new(Mutex::new(Diary::new(trouble)));
        let destination = Taking(Arc::clone(&taking));
        let journal = Arc::clone(&target_node.journal);
        let host = Arc::new(Host { destination, journal, estimate: Estimate::default() });
        let identity = target_node.identity.clone();
        tokio::spawn(async move {
            while let Ok((tcp, from)) = listener.accept().await {
                let (host, identity) = (Arc::clone(&host), identity.clone());
                tokio::spawn(async move {
                    if let Ok(tls) = identity.accept(tcp).await {
                        let _told_to_the_source = serve(&*host, &from.to_string(), tls).await;
                    }
                });
            }
        });
        Self { source_node, target_node, source: Leaving::new(trouble), taking, address }
    }

    pub fn target(&self) -> Taking {
        Taking(Arc::clone(&self.taking))
    }

    pub async fn move_pod(&self, request: &Move) -> Result<Report, MoveError> {
        self.move_as(request, &self.source_node.identity).await
    }

    pub async fn move_as(&self, request: &Move, identity: &Identity) -> Result<Report, MoveError> {
        move_pod(&self.source, request, identity, &self.source_node.journal, None).await
    }

    /// Waits until the destination has undone what it did before the failure.
    pub async fn settled(&self, step: Step) {
        for _ in 0..200 {
            let diary = self.target().diary();
            let received = diary.iter().any(|line| line.starts_with("receive"));
            if !received || step == Step::Receive || diary.last().is_some_and(|line| line == "abort") {
                assert!(!diary.iter().any(|line| line == "release"), "{step:?}: {diary:?}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{step:?}: the destination keeps {:?}", self.target().diary());
    }

    pub fn epoch(&self, state: EpochState) -> Epoch {
        let text = str::to_owned;
        Epoch {
            version: 1,
            migration: text(ID),
            pod: text("p"),
            peer: self.address.clone(),
            ticket: text("aa"),
            state,
        }
    }
}

pub fn request(pair: &Pair) -> Move {
    Move {
        migration: ID.into(),
        peer: pair.address.clone(),
        policy: Policy::Freeze,
        timeout: Duration::from_secs(20),
    }
}
