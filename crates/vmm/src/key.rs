//! The pairing key: one file that all hosts of a site share, and TLS 1.3 from it.
//!
//! The file holds an Ed25519 private key (PKCS #8 in PEM, as `openssl genpkey -algorithm ed25519`
//! writes it too). Both ends of a connection prove that they hold it, with raw public keys (RFC 7250):
//! there is no certificate, no name and no date that could be wrong. Whoever holds the file belongs to
//! the site; whoever does not gets nothing but a failed handshake. Every session has keys of its own,
//! so a stolen file opens no traffic of the past.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ClientConfig};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
    UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, SignatureScheme,
};

const PEM_TAG: &str = "PRIVATE KEY";

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read key file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write key file {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no Ed25519 private key; `lockstep keys` makes one", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Others could read the file.
    #[error("key file {} is readable by other users; run `chmod 600` on it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
    },
}

/// How the two ends of a connection know each other.
#[derive(Clone)]
pub enum Security {
    /// By the site's key, through TLS 1.3.
    Key(Arc<SiteKey>),
    /// Not at all, and everybody on the way can read the guest's memory. For tests and closed networks.
    Plaintext,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Security::Key(_) => "Key",
            Security::Plaintext => "Plaintext",
        })
    }
}

/// What a key file holds, ready for connections.
pub struct SiteKey {
    /// For the end that connects.
    pub client: Arc<ClientConfig>,
    /// For the end that listens.
    pub server: Arc<ServerConfig>,
}

/// Makes a new key and writes it to `path`, readable by its owner only. An existing file is kept.
///
/// # Errors
/// [`KeyError::Write`].
pub fn generate(path: &Path) -> Result<(), KeyError> {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
        .expect("the kernel has a random number generator");
    let text = pem::encode(&pem::Pem::new(PEM_TAG, document.as_ref()));
    host::files::write_new_private(path, text.as_bytes())
        .map_err(|source| KeyError::Write { path: path.to_owned(), source })
}

/// Reads a key file.
///
/// # Errors
/// Any [`KeyError`].
pub fn load(path: &Path) -> Result<SiteKey, KeyError> {
    let read = |source| KeyError::Read { path: path.to_owned(), source };
    let text = std::fs::read(path).map_err(read)?;
    if host::files::readable_by_others(path).map_err(read)? {
        return Err(KeyError::Open { path: path.to_owned() });
    }
    parse(&text).ok_or_else(|| KeyError::NoKey { path: path.to_owned() })
}

fn parse(text: &[u8]) -> Option<SiteKey> {
    let pem = pem::parse(text).ok().filter(|pem| pem.tag() == PEM_TAG)?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pem.into_contents()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let signing = provider.key_provider.load_private_key(der).ok()?;
    if signing.algorithm() != rustls::SignatureAlgorithm::ED25519 {
        return None;
    }
    let public = signing.public_key()?.into_owned();
    let presented = CertificateDer::from(public.as_ref().to_vec());
    let certified = Arc::new(CertifiedKey::new(vec![presented], signing));
    let verifier = Arc::new(SameKey::new(public, &provider));

    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            certified.clone(),
        )));
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .ok()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
    // Sessions live as long as the pair; there is nothing to resume.
    server.send_tls13_tickets = 0;
    Some(SiteKey { client: Arc::new(client), server: Arc::new(server) })
}

/// Accepts exactly the peer that holds the same key.
#[derive(Debug)]
struct SameKey {
    public: SubjectPublicKeyInfoDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SameKey {
    fn new(public: SubjectPublicKeyInfoDer<'static>, provider: &CryptoProvider) -> SameKey {
        SameKey { public, algorithms: provider.signature_verification_algorithms }
    }

    fn check(&self, presented: &CertificateDer<'_>) -> Result<(), TlsError> {
        if presented.as_ref() == self.public.as_ref() {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let public = SubjectPublicKeyInfoDer::from(presented.as_ref());
        verify_tls13_signature_with_raw_key(message, &public, signature, &self.algorithms)
    }
}

/// TLS 1.2 is never offered.
fn no_tls12() -> Result<HandshakeSignatureValid, TlsError> {
    Err(TlsError::General("TLS 1.2 is not spoken".to_owned()))
}

impl ServerCertVerifier for SameKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for SameKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A new key of a site that only the test knows.
    pub(crate) fn site_key() -> Security {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let text = pem::encode(&pem::Pem::new(PEM_TAG, document.as_ref()));
        Security::Key(Arc::new(parse(text.as_bytes()).unwrap()))
    }

    #[test]
    fn a_file_without_a_key_is_refused() {
        let dir = std::env::temp_dir().join(format!("lockstep-key-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("key");
        host::files::write_new_private(&path, b"-----BEGIN NOTHING-----").unwrap();
        assert!(matches!(load(&path), Err(KeyError::NoKey { .. })));
        std::fs::remove_file(&path).unwrap();

        generate(&path).unwrap();
        assert!(load(&path).is_ok());
        assert!(matches!(generate(&path), Err(KeyError::Write { .. })), "a key is never replaced");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
