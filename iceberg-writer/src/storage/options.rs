//! How an object store is reached: what the user has set, and for the rest what the environment says.
//!
//! No secret is a setting: a setting names the file that has it, which is read when a client is made, so that a changed one
//! counts from the next session on. Without a key in the settings the service's own places are looked at, in its own order:
//! its environment variables, the profile (S3), a web identity or workload identity, the machine's or container's role.
//! Where a catalog vends the keys ([`super::vault`]), none of that counts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};

use super::failure::StoreFailure;
use super::location::{Bucket, Service};
use super::profile::{self, Profile};
use super::renewing::{Borrowed, RenewingConnector};
use super::requests::CountingConnector;
use super::vault::{Address, Loan};

/// The longest that one try of a request may take, and the time for all of them; less than [`crate::deadline::STORAGE`],
/// so that an error says what the last try met.
const REQUEST: Duration = Duration::from_secs(30);
const TRIES: Duration = Duration::from_secs(25);
/// For a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// For all tries of a request where somebody waits for the answer.
const SHORT_TRIES: Duration = Duration::from_secs(3);
/// The pauses between tries: doubled, each drawn between the first and three times the former.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// What S3 calls the region of those that have none.
const NO_REGION: &str = "us-east-1";

/// How an object store is reached. What is not set comes from the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreOptions {
    /// Address of the store, `https://host:port`; without it the service's own.
    pub endpoint: Option<String>,
    /// Region of the bucket.
    pub region: Option<String>,
    /// S3: the key's id; the secret is in `secret_access_key_file`.
    pub access_key_id: Option<String>,
    /// S3: file with the key's secret.
    pub secret_access_key_file: Option<PathBuf>,
    /// S3: file with the session token that belongs to a temporary key.
    pub session_token_file: Option<PathBuf>,
    /// S3: profile of the shared credentials file that has the key.
    pub profile: Option<String>,
    /// S3: the bucket is a part of the path (the default), or of the host name.
    pub path_style: Option<bool>,
    /// Google: file with the service account's key.
    pub service_account_file: Option<PathBuf>,
    /// Azure: the storage account, where the URL does not name it.
    pub account: Option<String>,
    /// Azure: file with the account's key.
    pub account_key_file: Option<PathBuf>,
    /// Azure: file with a shared access signature.
    pub sas_token_file: Option<PathBuf>,
    /// Allows `http://`, which is not encrypted.
    pub allow_http: bool,
}

/// How long a client tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Until a passing fault has passed.
    Steady,
    /// Somebody waits for the answer.
    Short,
}

impl Patience {
    fn retry(self) -> RetryConfig {
        let backoff = BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LAST_PAUSE, base: 2.0 };
        let retry_timeout = match self {
            Self::Steady => TRIES,
            Self::Short => SHORT_TRIES,
        };
        // The time decides, not the number.
        RetryConfig { backoff, max_retries: usize::MAX, retry_timeout }
    }
}

impl StoreOptions {
    /// A client of a bucket.
    pub(super) async fn connect(&self, bucket: &Bucket, patience: Patience) -> iceberg::Result<Arc<dyn ObjectStore>> {
        let fail = |failure: StoreFailure| failure.during("open", &bucket.url());
        self.check(bucket.service).map_err(fail)?;
        let (options, bucket) = (self.clone(), bucket.clone());
        let url = bucket.url();
        // Certificates and credentials are read from files.
        let connected = tokio::task::spawn_blocking(move || match bucket.service {
            Service::Amazon => options.amazon(&bucket, patience),
            Service::Google => options.google(&bucket, patience),
            Service::Azure => options.azure(&bucket, patience),
        });
        match connected.await {
            Ok(connected) => connected.map_err(|failure| failure.during("open", &url)),
            Err(panic) => Err(StoreFailure::setting(panic.to_string()).during("open", &url)),
        }
    }

    /// Sees that nothing is set that a key which a catalog vends would have no use for.
    pub(super) fn check_vended(&self, service: Service) -> Result<(), StoreFailure> {
        if service != Service::Amazon {
            return Err(StoreFailure::setting("keys that a catalog vends are understood of S3 alone"));
        }
        let keys = [
            ("access_key_id", self.access_key_id.is_some()),
            ("secret_access_key_file", self.secret_access_key_file.is_some()),
            ("session_token_file", self.session_token_file.is_some()),
            ("profile", self.profile.is_some()),
        ];
        match keys.iter().find(|(_, set)| *set) {
            None => self.check(service),
            Some((name, _)) => {
                Err(StoreFailure::setting(format!("{name} is set, and the catalog is to vend the store's keys")))
            }
        }
    }

    /// A client of a bucket for what a key is for that a catalog vends. What is set here counts before what the catalog
    /// says of the store; nothing comes from the environment.
    pub(super) async fn borrow(
        &self,
        bucket: &Bucket,
        loan: Arc<Loan>,
        prefix: String,
        said: &Address,
        patience: Patience,
    ) -> Result<Arc<dyn ObjectStore>, StoreFailure> {
        let options = Self {
            endpoint: self.endpoint.clone().or_else(|| said.endpoint.clone()),
            region: self.region.clone().or_else(|| said.region.clone()),
            path_style: self.path_style.or(said.path_style),
            ..self.clone()
        };
        options.check_vended(bucket.service)?;
        let bucket = bucket.clone();
        // Certificates are read from files.
        let built = tokio::task::spawn_blocking(move || {
            let region = options.region.clone().unwrap_or_else(|| NO_REGION.to_owned());
            let borrowed = Borrowed { loan, prefix, region: region.clone() };
            let builder = options.client().into_iter().fold(AmazonS3Builder::new(), |builder, (key, value)| {
                builder.with_config(AmazonS3ConfigKey::Client(key), value)
            });
            options
                .addressed(builder.with_region(region), &bucket)
                .with_credentials(Arc::new(borrowed.clone()))
                .with_retry(patience.retry())
                .with_http_connector(RenewingConnector(borrowed))
                .build()
        });
        match built.await {
            Ok(built) => Ok(Arc::new(built.map_err(|error| StoreFailure::setting(error.to_string()))?)),
            Err(panic) => Err(StoreFailure::setting(panic.to_string())),
        }
    }

    /// Whether the settings fit together, and the service.
    fn check(&self, service: Service) -> Result<(), StoreFailure> {
        if let Some(endpoint) = &self.endpoint {
            let scheme = endpoint.split_once("://").map(|(scheme, _)| scheme);
            match scheme {
                Some("https") => {}
                Some("http") if self.allow_http => {}
                Some("http") => {
                    return Err(StoreFailure::setting(format!(
                        "endpoint = {endpoint:?} is not encrypted: allow_http = true allows it"
                    )));
                }
                _ => return Err(StoreFailure::setting(format!("endpoint = {endpoint:?} is not an https:// address"))),
            }
        }
        let s3 = [
            ("access_key_id", self.access_key_id.is_some()),
            ("secret_access_key_file", self.secret_access_key_file.is_some()),
            ("session_token_file", self.session_token_file.is_some()),
            ("profile", self.profile.is_some()),
            ("path_style", self.path_style.is_some()),
        ];
        let google = [("service_account_file", self.service_account_file.is_some())];
        let azure = [
            ("account", self.account.is_some()),
            ("account_key_file", self.account_key_file.is_some()),
            ("sas_token_file", self.sas_token_file.is_some()),
        ];
        let of_others = match service {
            Service::Amazon => [&google[..], &azure[..]],
            Service::Google => [&s3[..], &azure[..]],
            Service::Azure => [&s3[..], &google[..]],
        };
        if let Some((name, _)) = of_others.into_iter().flatten().find(|(_, set)| *set) {
            return Err(StoreFailure::setting(format!("{name} is not a setting of this kind of store")));
        }
        if self.secret_access_key_file.is_some() && self.access_key_id.is_none() {
            return Err(StoreFailure::setting("secret_access_key_file is set, and access_key_id is not"));
        }
        if self.profile.is_some() && self.access_key_id.is_some() {
            return Err(StoreFailure::setting("both access_key_id and profile are set"));
        }
        Ok(())
    }

    /// What the client is told. Other options of it stay as the environment has them (a proxy, for one).
    fn client(&self) -> Vec<(ClientConfigKey, String)> {
        let mut settings = vec![
            (ClientConfigKey::Timeout, format!("{} seconds", REQUEST.as_secs())),
            (ClientConfigKey::ConnectTimeout, format!("{} seconds", CONNECT.as_secs())),
            (ClientConfigKey::UserAgent, concat!("lakemirror/", env!("CARGO_PKG_VERSION")).to_owned()),
        ];
        if self.allow_http {
            settings.push((ClientConfigKey::AllowHttp, "true".to_owned()));
        }
        settings
    }

    fn amazon(&self, bucket: &Bucket, patience: Patience) -> Result<Arc<dyn ObjectStore>, StoreFailure> {
        let mut builder = AmazonS3Builder::from_env();
        for (key, value) in self.client() {
            builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        if let Some(id) = &self.access_key_id {
            // A token of the environment belongs to the environment's key.
            let session_token = self.session_token_file.as_deref().map(secret).transpose()?;
            let secret = match &self.secret_access_key_file {
                Some(file) => secret(file)?,
                None => std::env::var("AWS_SECRET_ACCESS_KEY")
                    .map_err(|_| StoreFailure::setting("access_key_id is set, and secret_access_key_file is not"))?,
            };
            let key = Profile { access_key_id: id.clone(), secret_access_key: secret, session_token };
            builder = builder.with_credentials(key.provider());
        } else if let Some(key) = self.profile_key(&builder)? {
            builder = builder.with_credentials(key.provider());
        }
        let built =
            self.addressed(builder, bucket).with_retry(patience.retry()).with_http_connector(CountingConnector).build();
        Ok(Arc::new(built.map_err(|error| StoreFailure::setting(error.to_string()))?))
    }

    /// What is to be a client of a bucket, told where that is.
    fn addressed(&self, mut builder: AmazonS3Builder, bucket: &Bucket) -> AmazonS3Builder {
        if let Some(endpoint) = &self.endpoint {
            let in_host = self.path_style == Some(false);
            // The client wants the bucket in the endpoint then.
            let endpoint = match endpoint.split_once("://").filter(|_| in_host) {
                Some((scheme, host)) => format!("{scheme}://{}.{host}", bucket.authority),
                None => endpoint.clone(),
            };
            builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
        }
        if let Some(path_style) = self.path_style {
            builder = builder.with_virtual_hosted_style_request(!path_style);
        }
        builder.with_bucket_name(&bucket.authority)
    }

    /// The key of a profile: of the one that is named, here or in the environment, or of the default one when nothing else
    /// has a key.
    fn profile_key(&self, builder: &AmazonS3Builder) -> Result<Option<Profile>, StoreFailure> {
        let elsewhere = [
            AmazonS3ConfigKey::AccessKeyId,
            AmazonS3ConfigKey::WebIdentityTokenFile,
            AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
            AmazonS3ConfigKey::ContainerCredentialsFullUri,
        ];
        let named = self.profile.clone();
        if named.is_none() && elsewhere.iter().any(|key| builder.get_config_value(key).is_some()) {
            return Ok(None);
        }
        profile::find(named)
    }

    fn google(&self, bucket: &Bucket, patience: Patience) -> Result<Arc<dyn ObjectStore>, StoreFailure> {
        let mut builder = GoogleCloudStorageBuilder::from_env();
        for (key, value) in self.client() {
            builder = builder.with_config(GoogleConfigKey::Client(key), value);
        }
        if let Some(file) = &self.service_account_file {
            builder = builder.with_config(GoogleConfigKey::ServiceAccount, file.display().to_string());
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_base_url(endpoint);
        }
        let built = builder
            .with_bucket_name(&bucket.authority)
            .with_retry(patience.retry())
            .with_http_connector(CountingConnector)
            .build();
        Ok(Arc::new(built.map_err(|error| StoreFailure::setting(error.to_string()))?))
    }

    fn azure(&self, bucket: &Bucket, patience: Patience) -> Result<Arc<dyn ObjectStore>, StoreFailure> {
        let mut builder = MicrosoftAzureBuilder::from_env();
        for (key, value) in self.client() {
            builder = builder.with_config(AzureConfigKey::Client(key), value);
        }
        if let Some(account) = &self.account {
            builder = builder.with_account(account);
        }
        if let Some(file) = &self.account_key_file {
            builder = builder.with_access_key(secret(file)?);
        }
        if let Some(file) = &self.sas_token_file {
            builder = builder.with_config(AzureConfigKey::SasKey, secret(file)?);
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let built =
            builder.with_url(bucket.url()).with_retry(patience.retry()).with_http_connector(CountingConnector).build();
        Ok(Arc::new(built.map_err(|error| StoreFailure::setting(error.to_string()))?))
    }
}

/// The secret in a file, without the line's end.
fn secret(file: &Path) -> Result<String, StoreFailure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| StoreFailure::setting(format!("read the secret in {}: {error}", file.display())))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: StoreOptions, service: Service) -> String {
        options.check(service).unwrap_err().to_string()
    }

    #[test]
    fn settings_must_fit_together() {
        let options = StoreOptions::default();
        assert!(options.check(Service::Amazon).is_ok());
        let endpoint = |url: &str| StoreOptions { endpoint: Some(url.to_owned()), ..StoreOptions::default() };
        assert!(refused(endpoint("http://h:1"), Service::Amazon).contains("allow_http"));
        assert!(refused(endpoint("h:1"), Service::Amazon).contains("https://"));
        assert!(StoreOptions { allow_http: true, ..endpoint("http://h:1") }.check(Service::Google).is_ok());
        let profile = StoreOptions { profile: Some("p".to_owned()), ..StoreOptions::default() };
        assert!(refused(profile.clone(), Service::Azure).contains("profile"));
        let both = StoreOptions { access_key_id: Some("k".to_owned()), ..profile };
        assert!(refused(both, Service::Amazon).contains("both"));
        let half = StoreOptions { secret_access_key_file: Some("/s".into()), ..StoreOptions::default() };
        assert!(refused(half, Service::Amazon).contains("access_key_id"));
    }

    #[test]
    fn a_vended_key_is_the_only_one() {
        let options = StoreOptions { region: Some("r".to_owned()), ..StoreOptions::default() };
        assert!(options.check_vended(Service::Amazon).is_ok());
        assert!(options.check_vended(Service::Google).unwrap_err().to_string().contains("S3 alone"));
        let with_key = StoreOptions { access_key_id: Some("k".to_owned()), ..options };
        assert!(with_key.check_vended(Service::Amazon).unwrap_err().to_string().contains("access_key_id"));
    }

    #[tokio::test]
    async fn a_secret_that_cannot_be_read_is_named_and_never_shown() {
        let bucket = Bucket { service: Service::Amazon, authority: "b".to_owned() };
        let options = StoreOptions {
            access_key_id: Some("key".to_owned()),
            secret_access_key_file: Some("/no/such/file".into()),
            ..StoreOptions::default()
        };
        let error = options.connect(&bucket, Patience::Short).await.unwrap_err();
        assert!(format!("{error}").contains("/no/such/file"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2\n").unwrap();
        let options = StoreOptions { secret_access_key_file: Some(file.path().to_owned()), ..options };
        let store = options.connect(&bucket, Patience::Short).await.unwrap();
        assert!(!format!("{options:?} {store}").contains("hunter2"));
    }
}
