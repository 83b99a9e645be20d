//! Starts that go wrong, in words that help; and what a worker inherits.

use std::time::Duration;

use interlock_device::{HostConfig, StartError};
use interlock_model::device::{NotStarted, Outcome};

use crate::lab::{Lab, bounded, call, eventually};

async fn refused(lab: &Lab) -> (String, String) {
    let error = lab.try_start().await.expect_err("refused");
    (error.to_string(), error.remedy())
}

#[tokio::test]
async fn a_file_that_cannot_be_loaded_is_refused_with_its_line() {
    let (text, remedy) = refused(&Lab::with_file("x = 1\ndef broken(:\n    pass\n")).await;

    assert!(text.contains("device.py:2") && text.contains("SyntaxError"), "{text}");
    assert!(remedy.contains("that line"), "{remedy}");
}

#[tokio::test]
async fn a_missing_module_is_named() {
    let (text, remedy) = refused(&Lab::with_file("import no_such_robot\n")).await;

    assert!(text.contains("device.py:1"), "{text}");
    assert!(remedy.contains("'no_such_robot'"), "{remedy}");
}

#[tokio::test]
async fn a_file_that_ends_the_process_is_refused_with_what_it_printed() {
    let (text, _) = refused(&Lab::with_file("import os\nprint('no port')\nos._exit(5)\n")).await;

    assert!(text.contains("exit code 5") && text.contains("| no port"), "{text}");
}

#[tokio::test]
async fn a_start_hook_that_fails_is_refused() {
    let lab = Lab::with_file(
        "from interlock import on_start\n@on_start\ndef connect():\n    raise OSError('no robot')\n",
    );

    let (text, remedy) = refused(&lab).await;

    assert!(text.contains("@on_start") && text.contains("no robot"), "{text}");
    assert!(remedy.contains("connected"), "{remedy}");
}

#[tokio::test]
async fn a_file_or_a_hook_that_takes_too_long_is_refused() {
    let mut loads = Lab::with_file("import time\nprint('homing')\ntime.sleep(600)\n");
    loads.config.load_deadline = Duration::from_millis(800);
    let mut starts = Lab::with_file(
        "from interlock import on_start\nimport time\n@on_start\ndef home():\n    time.sleep(600)\n",
    );
    starts.config.start_deadline = Duration::from_millis(300);

    for lab in [loads, starts] {
        let (text, _) = refused(&lab).await;
        assert!(text.contains("not ready after"), "{text}");
    }
}

#[tokio::test]
async fn a_missing_program_or_file_is_named() {
    let mut lab = Lab::new("");
    lab.config.python = "/no/such/python".into();
    let (text, remedy) = refused(&lab).await;
    assert!(text.contains("/no/such/python") && remedy.contains("not found"), "{text} {remedy}");

    let mut lab = Lab::new("");
    lab.config.file = "/no/such/file.py".into();
    assert!(matches!(lab.try_start().await, Err(StartError::NoFile { .. })));
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_refused() {
    let mut lab = Lab::new("");
    lab.config.state_dir = "/proc/interlock".into();

    let error = lab.try_start().await.expect_err("refused");

    assert!(matches!(error, StartError::Folder { .. }), "{error:?}");
}

#[tokio::test]
async fn one_folder_serves_one_host() {
    let lab = Lab::new("");
    let first = lab.start().await;

    assert!(matches!(lab.try_start().await, Err(StartError::Locked { .. })));

    bounded(first.shutdown(Duration::ZERO)).await;
    lab.start().await;
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_device() {
    let lab = Lab::new("");
    let first = lab.start().await;

    drop(first);

    eventually("free again", || lab.path("state").exists()).await;
    let mut second = lab.try_start().await;
    let deadline = tokio::time::Instant::now() + crate::lab::PATIENCE;
    while matches!(second, Err(StartError::Locked { .. })) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
        second = lab.try_start().await;
    }
    second.expect("the folder is free");
    assert_eq!(lab.count("rest host_lost"), 0);
}

#[tokio::test]
async fn a_worker_inherits_no_secret() {
    let lab = Lab::new("@task\ndef environment() -> dict:\n    return dict(os.environ)\n");
    let run = crate::helper::Helper::start(
        &lab,
        &[
            ("JWT_SECRET_KEY", "hunter2"),
            ("DATABASE_URL", "postgres://u:hunter2@db"),
            ("MY_API_TOKEN", "hunter2"),
            ("INTERLOCK__X", "hunter2"),
            ("HARMLESS", "yes"),
        ],
    );

    let environment = run.call("environment").finished();

    assert!(environment.contains("HARMLESS"), "{environment}");
    assert!(!environment.contains("hunter2"), "{environment}");
}

#[tokio::test]
async fn a_worker_that_keeps_dying_makes_the_device_unavailable_and_it_comes_back() {
    let mut lab = Lab::new(
        "if os.path.exists(os.path.join(LAB, 'bad')):\n    os._exit(4)\n@task\ndef die():\n    os._exit(1)\n",
    );
    lab.config.standby = false;
    let host = lab.start().await;
    std::fs::write(lab.path("bad"), "").unwrap();

    let outcome = bounded(host.call(call("die"))).await;

    assert!(matches!(outcome, Outcome::Crashed { .. }), "{outcome:?}");
    // The hook could not run: a person has to look, and the file has to be mended.
    assert_eq!(host.status().state, "held");
    bounded(host.clear_attention("mo", "looked")).await.unwrap_err();
    let mut short = call("echo");
    short.queue_limit = Some(Duration::from_millis(50));
    let unavailable = Outcome::NotStarted { reason: NotStarted::Unavailable };
    assert_eq!(bounded(host.call(short)).await, unavailable);
    assert_eq!(host.status().state, "unavailable");
    std::fs::remove_file(lab.path("bad")).unwrap();
    assert!(matches!(bounded(host.call(call("echo"))).await, Outcome::Returned { .. }));
}

#[tokio::test]
async fn the_configuration_does_not_print_its_environment() {
    let lab = Lab::new("");
    let config = HostConfig { environment: vec![("KEY".into(), "hunter2".into())], ..lab.config.clone() };

    assert!(!format!("{config:?}").contains("hunter2"));
}
