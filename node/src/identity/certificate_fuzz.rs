//! Mutated certificates. TLS verifies who issued one; what stands in it is still the issuer's choice.

use chronicle_fuzz::Fuzz;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::pki_types::CertificateDer;

use super::{CertificateFacts, NodeClaim, NodeRules, PeerCertificate, PrincipalRules};

fn certificate(names: &[SanType]) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["n1.log.svc".to_owned()]).unwrap();
    params.subject_alt_names.extend_from_slice(names);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

#[test]
fn mutated_certificates_name_somebody_or_are_refused() {
    let rules = PrincipalRules::new(&["spiffe://prod/(.+) -> $1"]).unwrap();
    let allowed = NodeRules::new(&["spiffe://*/node/{name}".to_owned()], "").unwrap();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    Fuzz::new("certificates")
        .seed(certificate(&[uri("chronicle://node/n1")]))
        .seed(certificate(&[uri("spiffe://prod/node/n1"), SanType::Rfc822Name("a@b".try_into().unwrap())]))
        .seed(certificate(&[SanType::IpAddress([10, 0, 0, 1].into())]))
        // Patterns are regular expressions, and matching takes tables.
        .allowance(64, 4 << 20)
        .run(|der| {
            let facts = CertificateFacts::read(der).map(|_| ());
            let peer = PeerCertificate::new(CertificateDer::from(der.to_vec())).map(|peer| {
                let claim = NodeClaim { name: "n1", address: "n1.log.svc:7400" };
                [&NodeRules::default(), &allowed].map(|rules| rules.judge(&peer, claim).is_ok())
            });
            format!("{facts:?} {peer:?} {:?}", rules.principal(der).map(|_| ()))
        });
}
