use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::error::Error;

fn vended(prefix: &str, id: &str, life: Option<Duration>) -> Vended {
    let key = Key { id: id.to_owned(), secret: "hunter2".to_owned(), token: Some("hunter3".to_owned()) };
    let until = life.map(|life| SystemTime::now() + life);
    Vended { prefix: prefix.to_owned(), key, address: Address::default(), until }
}

/// Gives a new key each time, late.
struct Counting {
    given: AtomicUsize,
    life: Option<Duration>,
    refuses: bool,
}

#[async_trait]
impl Vendor for Counting {
    async fn vend(&self, _namespace: &str, _name: &str) -> Result<Vec<Vended>> {
        let number = self.given.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
        if self.refuses {
            return Err(Error::invalid("the test says no"));
        }
        Ok(vec![vended("s3://b/t", &format!("key-{number}"), self.life)])
    }
}

fn vault(first: Option<Duration>, life: Option<Duration>, refuses: bool) -> (Vault, Arc<Counting>) {
    let vendor = Arc::new(Counting { given: AtomicUsize::new(0), life, refuses });
    let (vault, as_vendor) = (Vault::default(), Arc::clone(&vendor) as Arc<dyn Vendor>);
    vault.enter(("n", "t"), "s3://b/t", vec![vended("s3://b/t", "key-0", first)], &as_vendor);
    (vault, vendor)
}

const FILE: &str = "s3://b/t/data/x.parquet";

#[test]
fn the_longest_prefix_counts() {
    let all = [vended("s3://b", "b", None), vended("s3://b/t/data", "data", None), vended("s3a://b/t", "t", None)];
    let id = |location: &str| choose(&all, location).map(|vended| vended.key.id.as_str());
    assert_eq!(id("s3://b/t/data/x"), Some("data"));
    assert_eq!(id("s3a://b/t/metadata/x"), Some("t"));
    assert_eq!(id("s3://b/u/x"), Some("b"));
    assert_eq!(id("s3://b/t2/x"), Some("b"), "another table's folder");
    assert_eq!(id("s3://c/t/x"), None);
    for of_all in ["", "s3", "s3://"] {
        assert!(choose(&[vended(of_all, "all", None)], FILE).is_some(), "{of_all}");
    }
}

#[test]
fn a_place_is_its_tables_alone() {
    let (vault, vendor) = vault(None, None, false);
    let vendor = vendor as Arc<dyn Vendor>;
    vault.enter(("n", "t2"), "s3://b/t2", vec![vended("s3://b/t2/", "second", None)], &vendor);
    let id = |location: &str| vault.find(location).and_then(|loan| loan.held(location)).map(|vended| vended.key.id);
    assert_eq!(id(FILE).unwrap(), "key-0");
    assert_eq!(id("s3a://b/t2/data/x").unwrap(), "second");
    let failure = vault.find("s3://b/other/x").unwrap_err();
    assert!(failure.hint().is_some(), "{failure}");
    // What is vended for a table must be for its files.
    vault.enter(("n", "t3"), "s3://b/u", vec![vended("s3://b/elsewhere", "third", None)], &vendor);
    let failure = id("s3://b/u/x").unwrap_err();
    assert!(failure.to_string().contains("s3://b/elsewhere") && failure.hint().is_some(), "{failure}");
}

#[tokio::test]
async fn a_key_near_its_end_is_renewed_once_for_all_who_wait() {
    let (vault, vendor) = vault(Some(Duration::ZERO), Some(Duration::from_secs(3600)), false);
    let loan = vault.find(FILE).unwrap();
    let all = futures_util::future::join_all((0..20).map(|_| loan.current(FILE))).await;
    assert!(all.iter().all(|current| current.as_ref().unwrap().key.id == "key-1"));
    assert_eq!(vendor.given.load(Ordering::SeqCst), 1);
    // Half of a short life, and two minutes of a long one.
    let (vault, vendor) = self::vault(Some(Duration::from_millis(200)), Some(Duration::from_secs(3600)), false);
    let loan = vault.find(FILE).unwrap();
    assert_eq!(loan.current(FILE).await.unwrap().key.id, "key-0");
    tokio::time::sleep(Duration::from_millis(110)).await;
    assert_eq!(loan.current(FILE).await.unwrap().key.id, "key-1");
    assert_eq!(vendor.given.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refused_key_is_renewed_once_and_a_new_one_not_at_all() {
    let (vault, vendor) = vault(None, None, false);
    let loan = vault.find(FILE).unwrap();
    let first = loan.held(FILE).unwrap().key;
    assert_eq!(loan.other(FILE, &first).await.unwrap(), None, "it was vended just now");
    lock(&loan.held).since = Instant::now() - FRESH;
    let all = futures_util::future::join_all((0..20).map(|_| loan.other(FILE, &first))).await;
    assert!(all.iter().all(|other| other.as_ref().unwrap().as_ref().unwrap().key.id == "key-1"));
    assert_eq!(vendor.given.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_cannot_be_renewed_counts_until_its_end_and_all_hear_why() {
    let (vault, vendor) = vault(Some(Duration::from_millis(150)), None, true);
    let loan = vault.find(FILE).unwrap();
    tokio::time::sleep(Duration::from_millis(80)).await;
    assert_eq!(loan.current(FILE).await.unwrap().key.id, "key-0");
    tokio::time::sleep(Duration::from_millis(80)).await;
    let before = vendor.given.load(Ordering::SeqCst);
    let all = futures_util::future::join_all((0..20).map(|_| loan.current(FILE))).await;
    for failure in all {
        let failure = failure.unwrap_err();
        assert!(failure.to_string().contains("the test says no") && failure.hint().is_some(), "{failure}");
    }
    assert_eq!(vendor.given.load(Ordering::SeqCst), before + 1, "one request for all");
}

#[test]
fn secrets_are_not_shown() {
    let (vault, _) = vault(None, None, false);
    let loan = vault.find(FILE).unwrap();
    let shown = format!("{vault:?} {loan:?} {:?}", loan.held(FILE));
    assert!(!shown.contains("hunter"), "{shown}");
}
