//! A client of S3 whose key a catalog vends.
//!
//! Requests are signed with the key that counts when they are sent. One that the store refuses for its key is signed with
//! another and sent again, once: so a key may expire, or be revoked, in the middle of an upload. What is refused then too
//! is an error that says so.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{ClientOptions, CredentialProvider};

use super::failure::{Answer, StoreFailure};
use super::requests::CountingConnector;
use super::vault::{Key, Loan};

/// What an answer's code says that has nothing to do with the key's age.
const OF_OTHER_REASONS: [&str; 3] = ["RequestTimeTooSkewed", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"];
/// What it says with the status of a bad request, for it has.
const EXPIRED: [&str; 4] = ["ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"];

/// The key for locations with a prefix.
#[derive(Debug, Clone)]
pub(super) struct Borrowed {
    pub(super) loan: Arc<Loan>,
    pub(super) prefix: String,
    pub(super) region: String,
}

impl Key {
    fn credential(self) -> AwsCredential {
        AwsCredential { key_id: self.id, secret_key: self.secret, token: self.token }
    }
}

#[async_trait]
impl CredentialProvider for Borrowed {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        match self.loan.current(&self.prefix).await {
            Ok(vended) => Ok(Arc::new(vended.key.credential())),
            Err(failure) => Err(object_store::Error::Generic { store: "S3", source: Box::new(failure) }),
        }
    }
}

/// Makes the usual client, which sends again what is refused.
#[derive(Debug)]
pub(super) struct RenewingConnector(pub(super) Borrowed);

impl HttpConnector for RenewingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = CountingConnector.connect(options)?;
        Ok(HttpClient::new(Renewing { client, borrowed: self.0.clone() }))
    }
}

#[derive(Debug)]
struct Renewing {
    client: HttpClient,
    borrowed: Borrowed,
}

#[async_trait]
impl HttpService for Renewing {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (kept, is_head) = (request.clone(), request.method().as_str() == "HEAD");
        let (answer, refusal) = look(is_head, self.client.execute(request).await?).await?;
        let Some(refusal) = refusal else { return Ok(answer) };
        // Refused for what it was signed with, which may not be what counts now.
        let Borrowed { loan, prefix, region } = &self.borrowed;
        let failed = |failure: StoreFailure| HttpError::new(HttpErrorKind::Unknown, failure);
        let used = loan.held(prefix).map_err(failed)?.key;
        let used = if is_signed_with(&kept, &used) { used } else { Key { id: String::new(), ..used } };
        let Some(other) = loan.other(prefix, &used).await.map_err(failed)? else { return Err(failed(refusal)) };
        let again = signed(kept, &other.key.credential(), region);
        match look(is_head, self.client.execute(again).await?).await? {
            (answer, None) => Ok(answer),
            (_, Some(refusal)) => Err(failed(refusal)),
        }
    }
}

/// Whether a request bears this key.
fn is_signed_with(request: &HttpRequest, key: &Key) -> bool {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let by_id = header("authorization").is_some_and(|value| value.contains(&format!("Credential={}/", key.id)));
    by_id && header("x-amz-security-token") == key.token.as_deref()
}

/// An answer, and how it refuses the request's key if it does.
async fn look(is_head: bool, answer: HttpResponse) -> Result<(HttpResponse, Option<StoreFailure>), HttpError> {
    let status = answer.status().as_u16();
    if !matches!(status, 400 | 401 | 403) {
        return Ok((answer, None));
    }
    let (parts, body) = answer.into_parts();
    let body = body.bytes().await?;
    let said = Answer::of_document(&String::from_utf8_lossy(&body));
    let code = said.code.as_deref().unwrap_or("");
    let refused = match status {
        // The answer to HEAD has no document.
        400 => EXPIRED.contains(&code) || is_head,
        _ => !OF_OTHER_REASONS.contains(&code),
    };
    let refusal = refused.then(|| StoreFailure::vended_key_refused(status, &said));
    Ok((HttpResponse::from_parts(parts, body.into()), refusal))
}

/// A request with another signature.
fn signed(mut request: HttpRequest, credential: &AwsCredential, region: &str) -> HttpRequest {
    let headers = request.headers_mut();
    headers.remove("authorization");
    headers.remove("x-amz-security-token");
    // The client has computed it, from all parts of the body.
    let digest = headers.get("x-amz-content-sha256").and_then(|digest| hex::decode(digest.as_bytes()).ok());
    let authorizer = AwsAuthorizer::new(credential, "s3", region);
    match digest {
        Some(digest) => authorizer.authorize(&mut request, Some(&digest)),
        None => authorizer.with_sign_payload(false).authorize(&mut request, None),
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_signed_anew_for_the_same_content() {
        let key = |id: &str, token: Option<&str>| Key {
            id: id.to_owned(),
            secret: "s".to_owned(),
            token: token.map(str::to_owned),
        };
        let digest = [7_u8; 32];
        let mut request = HttpRequest::new(object_store::client::HttpRequestBody::empty());
        *request.uri_mut() = "http://h:1/b/k".parse().unwrap();
        let old = key("old", Some("token"));
        AwsAuthorizer::new(&old.clone().credential(), "s3", "r").authorize(&mut request, Some(&digest));
        assert!(is_signed_with(&request, &old));
        assert!(!is_signed_with(&request, &key("old", None)) && !is_signed_with(&request, &key("ol", Some("token"))));
        let new = key("new", None);
        let request = signed(request, &new.clone().credential(), "r");
        assert!(is_signed_with(&request, &new) && !is_signed_with(&request, &old));
        assert_eq!(request.headers()["x-amz-content-sha256"].to_str().unwrap(), hex::encode(digest));
    }
}
