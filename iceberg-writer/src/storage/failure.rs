//! What a request to an object store failed of, in one place: whether it may pass by itself, and what a person can do.
//!
//! The client gives its errors as text around the server's answer. The codes in that answer are the documented ones; where
//! there is none, the status decides. The text that is kept has the code and the message, never the request: it may be
//! signed.

use std::error::Error as StdError;
use std::fmt;

use iceberg::{Error as IcebergError, ErrorKind as IcebergKind};
use object_store::client::{HttpError, HttpErrorKind};

use crate::error::ErrorKind;

/// What of an answer is repeated, in characters.
const LONGEST_DETAIL: usize = 300;

/// Why a request failed, as far as a person acts on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A setting cannot be used.
    Setting,
    /// There is no such object.
    NoObject,
    NoBucket,
    /// The machine does not let the worker at a file.
    Forbidden,
    /// The credentials are known and not allowed to.
    Denied,
    BadCredentials,
    NoCredentials,
    Expired,
    ClockSkew,
    /// The bucket is elsewhere; where, if the server says so.
    Region(Option<String>),
    Unreachable,
    Busy,
    /// A key that a catalog vends: it vends none, or the store refuses it.
    Vending,
    Other,
}

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreFailure {
    pub(crate) cause: Cause,
    detail: String,
}

impl fmt::Display for StoreFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl StdError for StoreFailure {}

impl StoreFailure {
    /// An error of the client.
    pub(super) fn new(error: &object_store::Error) -> Self {
        if let Some(known) = known(error) {
            return known.clone();
        }
        let text = error.to_string();
        let answer = Answer::find(&text);
        let transport = transport(error);
        let cause = cause(error, &text, &answer, transport);
        let detail = match (&answer.code, &answer.status, transport) {
            (Some(code), _, _) => {
                let message = answer.message.as_deref().unwrap_or("");
                [answer.status.as_deref().unwrap_or(""), code, message].join(" ").trim().to_owned()
            }
            (None, Some(status), _) => format!("the store answered {status}"),
            (None, None, _) => innermost(error),
        };
        Self { cause, detail: detail.chars().take(LONGEST_DETAIL).collect() }
    }

    /// An answer that did not come in time.
    pub(super) fn timed_out() -> Self {
        Self { cause: Cause::Unreachable, detail: "no answer in time".to_owned() }
    }

    /// A store that is not there, or is another thing.
    pub(super) fn unreachable(detail: impl Into<String>) -> Self {
        Self { cause: Cause::Unreachable, detail: detail.into() }
    }

    /// A file or a folder that the worker is not let at.
    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Self { cause: Cause::Forbidden, detail: detail.into() }
    }

    /// A setting that cannot be used.
    pub(super) fn setting(detail: impl Into<String>) -> Self {
        Self { cause: Cause::Setting, detail: detail.into() }
    }

    /// No key is vended that could be used.
    pub(super) fn not_vended(detail: impl Into<String>) -> Self {
        Self { cause: Cause::Vending, detail: detail.into() }
    }

    /// The catalog does not vend another key.
    pub(super) fn not_renewed(error: &crate::Error) -> Self {
        let detail = format!("renew the store's key: {error}");
        Self { cause: Cause::Vending, detail: detail.chars().take(LONGEST_DETAIL).collect() }
    }

    /// The store refuses a key that the catalog has vended.
    pub(super) fn vended_key_refused(status: u16, answer: &Answer) -> Self {
        let (code, message) = (answer.code.as_deref().unwrap_or(""), answer.message.as_deref().unwrap_or(""));
        let detail = format!("the store refuses the key that the catalog vends: {status} {code} {message}");
        Self { cause: Cause::Vending, detail: detail.trim_end().chars().take(LONGEST_DETAIL).collect() }
    }

    /// As an error of the Iceberg library, which carries it to [`crate::Error`].
    pub(super) fn during(self, what: &str, location: &str) -> IcebergError {
        let lasting = matches!(self.cause, Cause::NoObject | Cause::Setting);
        let kind = if lasting { IcebergKind::DataInvalid } else { IcebergKind::Unexpected };
        IcebergError::new(kind, format!("{what} {location}")).with_retryable(!lasting).with_source(self)
    }

    /// The crate's kind.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self.cause {
            Cause::Setting => ErrorKind::Invalid,
            Cause::NoObject => ErrorKind::Format,
            _ => ErrorKind::Storage,
        }
    }

    /// What a person can do.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match &self.cause {
            Cause::Setting => "the README lists the settings of stores",
            Cause::NoObject | Cause::Other => return None,
            Cause::NoBucket => "create the bucket, or correct its name in the warehouse's URL",
            Cause::Forbidden => {
                "let the worker's operating system user own the warehouse's folder and all that is in it"
            }
            Cause::Denied => "allow the credentials to get, put, delete and list objects below the warehouse's URL",
            Cause::BadCredentials => "the store does not know the key, or the secret is not the key's: correct both",
            Cause::NoCredentials => {
                "no credentials were found: give a key in the section store, in the environment or in a profile, or run \
                 where the machine has a role"
            }
            Cause::Expired => "renew the credentials: a session token lives for hours; a role renews it by itself",
            Cause::ClockSkew => "set this machine's clock: the store refuses requests of another time",
            Cause::Region(Some(region)) => {
                return Some(format!("the bucket is in another region: region = \"{region}\""));
            }
            Cause::Region(None) => "the bucket is in another region: set region to the bucket's",
            Cause::Unreachable => {
                "see that endpoint is the store's address, and that the network lets the worker reach it"
            }
            Cause::Vending => {
                "see in the catalog that the worker's principal may read and write the table, and that the keys which it \
                 vends are for the table's folder, to read, write, delete and list"
            }
            Cause::Busy => "the store asks for fewer requests, or has a fault of its own; the worker goes on by itself",
        };
        Some(hint.to_owned())
    }
}

/// The failure that an error of the Iceberg library carries.
pub(crate) fn carried_by(error: &IcebergError) -> Option<&StoreFailure> {
    StdError::source(error)?.downcast_ref()
}

/// An error of the client, as the Iceberg library's.
pub(super) fn failed(what: &str, location: &str, error: &object_store::Error) -> IcebergError {
    StoreFailure::new(error).during(what, location)
}

/// What the server said.
#[derive(Default)]
pub(super) struct Answer {
    status: Option<String>,
    pub(super) code: Option<String>,
    message: Option<String>,
    region: Option<String>,
}

impl Answer {
    /// Of the document that it consists of.
    pub(super) fn of_document(text: &str) -> Self {
        Self { status: None, ..Self::find(text) }
    }

    fn find(text: &str) -> Self {
        let element = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            rest.split_once(&format!("</{name}>")).map(|(value, _)| value.trim().to_owned())
        };
        let status = text.split_once("status code: ").map(|(_, rest)| rest.chars().take(3).collect::<String>());
        Self {
            status: status.filter(|status| status.bytes().all(|byte| byte.is_ascii_digit())),
            code: element("Code"),
            message: element("Message"),
            region: element("Region"),
        }
    }
}

fn cause(error: &object_store::Error, text: &str, answer: &Answer, transport: Option<HttpErrorKind>) -> Cause {
    let from_metadata =
        ["169.254.", "metadata.google.internal", "metadata_endpoint"].iter().any(|at| text.contains(at));
    if from_metadata {
        return Cause::NoCredentials;
    }
    match answer.code.as_deref().unwrap_or("") {
        "NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted" => return Cause::NoBucket,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "AuthenticationFailed"
        | "InvalidToken"
        | "InvalidSecurity"
        | "InvalidAuthenticationInfo" => return Cause::BadCredentials,
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => return Cause::Expired,
        "RequestTimeTooSkewed" | "RequestExpired" => return Cause::ClockSkew,
        "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => {
            return Cause::Region(answer.region.clone());
        }
        "AccessDenied" | "AllAccessDisabled" | "AuthorizationFailure" | "AuthorizationPermissionMismatch" => {
            return Cause::Denied;
        }
        _ => {}
    }
    if text.contains("incorrectly configured region") {
        return Cause::Region(None);
    }
    if text.contains("The specified bucket does not exist") {
        return Cause::NoBucket;
    }
    match answer.status.as_deref() {
        Some("401") => return Cause::BadCredentials,
        Some("403") => return Cause::Denied,
        Some("404") => return Cause::NoObject,
        Some("301" | "307") => return Cause::Region(answer.region.clone()),
        Some("429" | "500" | "502" | "503" | "504") => return Cause::Busy,
        _ => {}
    }
    match (error, transport) {
        (object_store::Error::NotFound { .. }, _) => Cause::NoObject,
        (object_store::Error::PermissionDenied { .. }, _) => Cause::Denied,
        (object_store::Error::Unauthenticated { .. }, _) => Cause::BadCredentials,
        (object_store::Error::InvalidPath { .. }, _) => Cause::Setting,
        (_, Some(_)) => Cause::Unreachable,
        _ => Cause::Other,
    }
}

/// A failure that we have seen ourselves, within the client.
fn known(error: &object_store::Error) -> Option<&StoreFailure> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(failure) = error.downcast_ref::<StoreFailure>() {
            return Some(failure);
        }
        cause = error.source();
    }
    None
}

/// What became of the connection, where it was not the server that refused.
fn transport(error: &object_store::Error) -> Option<HttpErrorKind> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

/// The end of the chain of causes says what happened; what is before it says to which request.
fn innermost(error: &object_store::Error) -> String {
    let mut last: &(dyn StdError + 'static) = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}
