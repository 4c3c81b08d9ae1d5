//! How requests are authorized.
//!
//! Secrets are read from their files when they are needed, so that one that was changed there counts from the next request
//! that needs it on.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, HeaderValue};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::client::{encoded, read, unreachable_server};
use super::shapes::Token;
use super::sigv4;
use crate::error::{Error, ErrorKind, Result};

/// A token is renewed when this much of its time is left, at most half of it.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// How long a token counts of which the server does not say.
const TOKEN_LIFE: Duration = Duration::from_secs(600);

/// How requests to a REST catalog are authorized.
#[derive(Clone)]
pub enum RestAuth {
    /// Not at all.
    None,
    /// By a token in a file.
    Bearer {
        /// The file.
        token_file: PathBuf,
    },
    /// By tokens that OAuth2's client credentials are changed for.
    OAuth2 {
        /// The file with `client_id:client_secret`.
        credential_file: PathBuf,
        /// Where tokens are given out; without it by the catalog itself.
        server_uri: Option<String>,
        /// What the token is for.
        scope: String,
    },
    /// By signatures of Amazon's kind, version 4.
    SigV4 {
        /// The file with `access_key:secret_key` or `access_key:secret_key:session_token`; without it the environment has
        /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
        credential_file: Option<PathBuf>,
        /// The region.
        region: String,
        /// The service's name: `s3tables`, `glue`, `s3`, `execute-api`.
        service: String,
    },
}

impl fmt::Debug for RestAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Bearer { .. } => "Bearer",
            Self::OAuth2 { .. } => "OAuth2",
            Self::SigV4 { .. } => "SigV4",
        })
    }
}

/// The tokens that there are.
pub(super) struct Auth {
    by: RestAuth,
    token_uri: String,
    token: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Auth {
    pub(super) fn new(by: RestAuth, base: &str) -> Self {
        let token_uri = match &by {
            RestAuth::OAuth2 { server_uri: Some(uri), .. } => uri.clone(),
            _ => format!("{base}/oauth/tokens"),
        };
        Self { by, token_uri, token: Mutex::new(None) }
    }

    /// Gives a token up that the server does not take. Whether another can be had.
    pub(super) async fn forget(&self) -> bool {
        *self.token.lock().await = None;
        matches!(self.by, RestAuth::OAuth2 { .. } | RestAuth::Bearer { .. })
    }

    pub(super) async fn authorize(&self, http: &reqwest::Client, request: &mut reqwest::Request) -> Result<()> {
        match &self.by {
            RestAuth::None => Ok(()),
            RestAuth::Bearer { token_file } => {
                let token = secret(token_file, "catalog.token_file").await?;
                request.headers_mut().insert(AUTHORIZATION, bearer(&token)?);
                Ok(())
            }
            RestAuth::OAuth2 { credential_file, scope, .. } => {
                let mut token = self.token.lock().await;
                let current =
                    token.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(token, _)| token.clone());
                let header = match current {
                    Some(header) => header,
                    None => {
                        let credential = secret(credential_file, "catalog.credential_file").await?;
                        let (header, life) = self.ask_for_token(http, &credential, scope).await?;
                        let margin = RENEW_BEFORE.min(life / 2);
                        *token = Some((header.clone(), Instant::now() + life.saturating_sub(margin)));
                        header
                    }
                };
                request.headers_mut().insert(AUTHORIZATION, header);
                Ok(())
            }
            RestAuth::SigV4 { credential_file, region, service } => {
                let keys = match credential_file {
                    Some(file) => sigv4::Keys::read(&secret(file, "catalog.credential_file").await?)?,
                    None => sigv4::Keys::of_environment()?,
                };
                sigv4::sign(request, &keys, region, service, SystemTime::now())
            }
        }
    }

    async fn ask_for_token(
        &self,
        http: &reqwest::Client,
        credential: &str,
        scope: &str,
    ) -> Result<(HeaderValue, Duration)> {
        let (id, secret) = credential.split_once(':').ok_or_else(|| {
            Error::invalid("catalog.credential_file holds no client_id:client_secret")
                .with_hint("put both on its one line, with a colon in between")
        })?;
        let fields =
            [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret), ("scope", scope)];
        let form: Vec<String> =
            fields.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        let request = http.post(&self.token_uri).header("Content-Type", "application/x-www-form-urlencoded");
        let response = request.body(form.join("&")).send().await.map_err(unreachable_server)?;
        let reply = read(response).await?;
        if !reply.is_success() {
            let hint = "check catalog.credential_file, catalog.scope and catalog.oauth2_server_uri";
            return Err(reply.into_error("ask for a token", hint));
        }
        let token: Token = reply.parse("a token")?;
        let life = token.expires_in.map_or(TOKEN_LIFE, Duration::from_secs);
        Ok((bearer(&token.access_token)?, life))
    }
}

fn bearer(token: &str) -> Result<HeaderValue> {
    let header = HeaderValue::from_str(&format!("Bearer {token}"));
    // The error would quote it.
    let mut header = header.map_err(|_| Error::invalid("the catalog's token has characters that no header has"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// The content of a file with a secret.
async fn secret(file: &PathBuf, setting: &str) -> Result<String> {
    let text = tokio::fs::read_to_string(file).await.map_err(|error| {
        Error::new(ErrorKind::Invalid, format!("read {setting}, {}", file.display()))
            .with_source(error)
            .with_hint("let the worker's operating system user read the file")
    })?;
    let text = text.trim();
    if text.is_empty() {
        return Err(Error::invalid(format!("{setting}, {}, is empty", file.display())));
    }
    Ok(text.to_owned())
}
