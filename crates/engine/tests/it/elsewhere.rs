//! People whom a directory knows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use interlock_engine::auth::{
    Directories, Elsewhere, External, PasswordDirectory, RefreshError, SignInError, SystemPermit, Wanted,
};
use interlock_engine::users::UserChange;
use interlock_model::secret::Secret;
use interlock_store::sqlite::Sqlite;
use tempfile::TempDir;

use crate::bench::{Bench, Scripted, origin, password};

/// A directory in which everybody's password is `sesame` and people change.
#[derive(Default)]
struct Book(Mutex<HashMap<String, External>>);

impl Book {
    fn write(&self, name: &str, subject: &str, roles: &[&str]) {
        let external = External {
            subject: subject.to_owned(),
            name: name.to_owned(),
            roles: roles.iter().map(|&role| role.to_owned()).collect(),
            method: "ldap",
        };
        self.0.lock().expect("unpoisoned").insert(name.to_owned(), external);
    }
}

#[async_trait]
impl PasswordDirectory for Book {
    async fn authenticate(&self, name: &str, password: &Secret) -> Result<External, Elsewhere> {
        if name == "away" {
            return Err(Elsewhere::Unavailable("no answer".to_owned()));
        }
        let found = self.0.lock().expect("unpoisoned").get(name).cloned();
        found
            .filter(|_| password.expose() == "sesame")
            .ok_or_else(|| Elsewhere::Refused("wrong password".to_owned()))
    }
}

async fn fresh() -> (TempDir, Arc<Book>, Bench) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Arc::new(Sqlite::open_in(folder.path()).expect("a database"));
    let book = Arc::new(Book::default());
    let directories = Directories { password: Some(Arc::clone(&book) as _), ..Directories::default() };
    let bench = Bench::with(store, Scripted::prompt(), 1, directories).await;
    (folder, book, bench)
}

async fn sign_in(bench: &Bench, name: &str, word: &str) -> Result<Vec<String>, SignInError> {
    bench
        .identity
        .sign_ins
        .person(name, Secret::new(word), None, &Wanted::default(), &origin())
        .await
        .map(|session| session.roles)
}

#[tokio::test]
async fn a_person_gets_an_account_with_the_roles_of_the_day() {
    let (_folder, book, bench) = fresh().await;
    book.write("ana", "uuid-1", &["operator", "viewer", "no-such-role"]);

    assert_eq!(sign_in(&bench, "ana", "sesame").await.expect("signed in"), ["operator", "viewer"]);
    book.write("ana", "uuid-1", &["viewer"]);
    assert_eq!(sign_in(&bench, "ana", "sesame").await.expect("signed in"), ["viewer"]);
    book.write("ana", "uuid-1", &[]);
    assert!(matches!(sign_in(&bench, "ana", "sesame").await, Err(SignInError::Refused)));
    assert!(matches!(sign_in(&bench, "ana", "wrong").await, Err(SignInError::Refused)));
}

#[tokio::test]
async fn a_lost_role_is_lost_by_older_tokens_at_once() {
    let (_folder, book, bench) = fresh().await;
    book.write("ana", "uuid-1", &["operator", "viewer"]);
    let before = bench
        .identity
        .sign_ins
        .person("ana", Secret::new("sesame"), None, &Wanted::default(), &origin())
        .await
        .expect("signed in");

    book.write("ana", "uuid-1", &["viewer"]);
    sign_in(&bench, "ana", "sesame").await.expect("signed in");

    let caller = bench.guard.authenticate(Some(before.issued.access.expose()), &origin()).expect("a caller");
    assert_eq!(caller.grants().roles(), ["viewer".to_owned()]);
}

#[tokio::test]
async fn a_name_is_not_enough_to_become_somebody() {
    let (_folder, book, bench) = fresh().await;
    bench.user("boss", &["admin"]).await;
    book.write("boss", "uuid-boss", &["operator"]);
    book.write("ana", "uuid-1", &["viewer"]);

    // The local password decides for a local account, whatever the directory says.
    assert!(matches!(sign_in(&bench, "boss", "sesame").await, Err(SignInError::Refused)));
    assert!(
        bench
            .identity
            .sign_ins
            .person("boss", password("boss"), None, &Wanted::default(), &origin())
            .await
            .is_ok()
    );
    // Another person who has got the name of an earlier one does not get the account.
    sign_in(&bench, "ana", "sesame").await.expect("signed in");
    book.write("ana", "uuid-2", &["admin"]);
    assert!(matches!(sign_in(&bench, "ana", "sesame").await, Err(SignInError::Refused)));
    // A person who was renamed keeps the account.
    book.write("ana.lovelace", "uuid-1", &["viewer"]);
    let session = bench
        .identity
        .sign_ins
        .person("ana.lovelace", Secret::new("sesame"), None, &Wanted::default(), &origin())
        .await
        .expect("signed in");
    assert_eq!(session.user, "ana");
}

#[tokio::test]
async fn whoever_is_disabled_here_stays_out() {
    let (_folder, book, bench) = fresh().await;
    book.write("ana", "uuid-1", &["viewer"]);
    sign_in(&bench, "ana", "sesame").await.expect("signed in");

    let root = SystemPermit::root("console");
    let change = UserChange { disabled: Some(true), ..UserChange::default() };
    bench.users.console(&root).update("ana", change).await.expect("disabled");

    assert!(matches!(sign_in(&bench, "ana", "sesame").await, Err(SignInError::Refused)));
}

#[tokio::test]
async fn a_directory_that_is_away_costs_nobody_a_guess() {
    let (_folder, _book, bench) = fresh().await;

    for _ in 0..50 {
        assert!(matches!(sign_in(&bench, "away", "sesame").await, Err(SignInError::Elsewhere)));
    }
}

#[tokio::test]
async fn people_of_a_directory_prove_who_they_are_twice_a_day() {
    let (_folder, book, bench) = fresh().await;
    bench.user("boss", &["admin"]).await;
    book.write("ana", "uuid-1", &["viewer"]);
    let ana = bench
        .identity
        .sign_ins
        .person("ana", Secret::new("sesame"), None, &Wanted::default(), &origin())
        .await
        .expect("signed in");
    let boss = bench
        .identity
        .sign_ins
        .person("boss", password("boss"), None, &Wanted::default(), &origin())
        .await
        .expect("signed in");

    bench.clock.advance(Duration::from_hours(13));
    let refresh = async |session: &interlock_engine::auth::SignedIn| {
        let token = session.issued.refresh.as_ref().expect("a refresh token");
        bench.identity.sessions.refresh(token.expose(), None, &origin()).await
    };

    assert!(matches!(refresh(&ana).await, Err(RefreshError::Token(_))));
    assert!(refresh(&boss).await.is_ok());
}
