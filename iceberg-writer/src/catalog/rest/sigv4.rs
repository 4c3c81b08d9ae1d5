//! Signatures of Amazon's kind, version 4, as their specification has them.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::client::encoded;
use crate::error::{Error, Result};

/// Whose signature it is. Shown nowhere.
pub(super) struct Keys {
    access: String,
    secret: String,
    session: Option<String>,
}

impl Keys {
    pub(super) fn read(text: &str) -> Result<Self> {
        let mut parts = text.splitn(3, ':').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(access), Some(secret), session) => Ok(Self { access, secret, session }),
            _ => Err(Error::invalid("catalog.credential_file holds no access_key:secret_key")
                .with_hint("put both on its one line, with a colon in between")),
        }
    }

    pub(super) fn of_environment() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
            (Some(access), Some(secret)) => Ok(Self { access, secret, session: variable("AWS_SESSION_TOKEN") }),
            _ => Err(Error::invalid("there are no keys to sign requests to the catalog with").with_hint(
                "set catalog.credential_file, or the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )),
        }
    }
}

/// What is signed of a request.
struct Signed<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    /// Names in lower case, sorted.
    headers: &'a [(&'a str, &'a str)],
    body_hash: &'a str,
}

/// Signs a request as of a time.
pub(super) fn sign(
    request: &mut reqwest::Request,
    keys: &Keys,
    region: &str,
    service: &str,
    now: SystemTime,
) -> Result<()> {
    let stamp = timestamp(now);
    let body = request.body().and_then(|body| body.as_bytes()).unwrap_or_default();
    let body_hash = hex::encode(Sha256::digest(body));
    let url = request.url().clone();
    let host = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => return Err(Error::invalid("a request to no host")),
    };
    let mut headers = vec![("host", host.as_str()), ("x-amz-content-sha256", &body_hash), ("x-amz-date", &stamp)];
    headers.extend(keys.session.as_deref().map(|session| ("x-amz-security-token", session)));
    // Services but S3 want each segment of the path encoded once more.
    let path = match service {
        "s3" => url.path().to_owned(),
        _ => url.path().split('/').map(encoded).collect::<Vec<_>>().join("/"),
    };
    let signed = Signed {
        method: request.method().as_str(),
        path: &path,
        query: url.query().unwrap_or_default(),
        headers: &headers,
        body_hash: &body_hash,
    };
    let authorization = authorization(&signed, keys, region, service, &stamp);
    let fail = |_| Error::invalid("the keys for the catalog have characters that no header has");
    let own = headers.iter().filter(|(name, _)| *name != "host");
    let own: Vec<(String, String)> = own.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    for (name, value) in own {
        let name = HeaderName::try_from(name).map_err(|_| Error::invalid("a header's name"))?;
        request.headers_mut().insert(name, HeaderValue::try_from(value).map_err(fail)?);
    }
    let mut authorization = HeaderValue::try_from(authorization).map_err(fail)?;
    authorization.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, authorization);
    Ok(())
}

fn authorization(signed: &Signed<'_>, keys: &Keys, region: &str, service: &str, stamp: &str) -> String {
    let mut query: Vec<&str> = signed.query.split('&').filter(|part| !part.is_empty()).collect();
    query.sort_unstable();
    let headers: String = signed.headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let names = signed.headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let canonical =
        format!("{}\n{}\n{}\n{headers}\n{names}\n{}", signed.method, signed.path, query.join("&"), signed.body_hash);
    let day = &stamp[..8];
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let mut key = format!("AWS4{}", keys.secret).into_bytes();
    for part in [day, region, service, "aws4_request"] {
        key = keyed_hash(&key, part);
    }
    let signature = hex::encode(keyed_hash(&key, &text));
    format!("AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", keys.access)
}

fn keyed_hash(key: &[u8], text: &str) -> Vec<u8> {
    let mut hash = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    hash.update(text.as_bytes());
    hash.finalize().into_bytes().to_vec()
}

/// `20150830T123600Z`
fn timestamp(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Of eras of 400 years that begin with March of the year 0, for leap days come last then.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn signature(authorization: &str) -> &str {
        authorization.rsplit('=').next().unwrap()
    }

    /// The test suite that Amazon has published with the specification.
    #[test]
    fn the_published_examples_come_out() {
        let keys = Keys::read("AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY").unwrap();
        let headers = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
        for (method, query, expected) in [
            ("GET", "", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("POST", "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
            ("GET", "Param2=value2&Param1=value1", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
        ] {
            let signed = Signed { method, path: "/", query, headers: &headers, body_hash: EMPTY };
            let authorization = authorization(&signed, &keys, "us-east-1", "service", "20150830T123600Z");
            assert_eq!(signature(&authorization), expected, "{method} {query}");
            assert!(authorization.starts_with(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders=host;x-amz-date, Signature="
            ));
        }
    }

    /// The example of S3's documentation.
    #[test]
    fn a_request_to_s3_is_signed_as_documented() {
        let keys = Keys::read("AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY").unwrap();
        let headers = [
            ("host", "examplebucket.s3.amazonaws.com"),
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", EMPTY),
            ("x-amz-date", "20130524T000000Z"),
        ];
        let signed = Signed { method: "GET", path: "/test.txt", query: "", headers: &headers, body_hash: EMPTY };
        let authorization = authorization(&signed, &keys, "us-east-1", "s3", "20130524T000000Z");
        assert_eq!(signature(&authorization), "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
    }

    #[test]
    fn times_are_written_as_they_are_signed() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(1_440_938_160), "20150830T123600Z");
        assert_eq!(at(951_827_696), "20000229T123456Z");
        assert_eq!(at(0), "19700101T000000Z");
    }
}
