//! A real browser: Debian's Chromium, controlled through WebDriver.
//!
//! Guarantees: each browser has its own driver, port and profile, and ends when it is dropped. It can reach only the
//! loopback interface. `scripts/test` installs Chromium and its driver.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a page may take to show an expected text. This is far longer than needed, so that tests do not depend on
/// speed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval between checks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The key of an element's ID in WebDriver responses.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub(crate) struct Chromium {
    driver: Child,
    client: reqwest::Client,
    session: String,
    _profile: TempDir,
}

impl Chromium {
    pub(crate) async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is here: scripts/test installs it (chromium, chromium-driver)");
        let mut said = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = said
            .find_map(|line| {
                let line = line.ok()?;
                let (_, port) = line.split_once("successfully on port ")?;
                Some(port.trim_end_matches('.').to_owned())
            })
            .expect("chromedriver says its port");
        errand_engine::net::install_crypto_provider();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let profile_dir = format!("--user-data-dir={}", profile.path().display());
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,900",
            &profile_dir,
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            "unhandledPromptBehavior": "accept",
        }}});
        let mut browser = Self {
            driver,
            client,
            session: format!("http://127.0.0.1:{port}/session"),
            _profile: profile,
        };
        let made = browser.call("", Some(wanted)).await.expect("a session");
        let id = made["sessionId"].as_str().unwrap().to_owned();
        browser.session = format!("{}/{id}", browser.session);
        browser
    }

    /// Sends a WebDriver command and returns its value or its error.
    async fn call(&self, path: &str, body: Option<Value>) -> Result<Value, String> {
        let url = format!("{}{path}", self.session);
        let request = match body {
            Some(body) => self.client.post(url).json(&body),
            None => self.client.get(url),
        };
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        match answer["value"].get("error") {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"])),
            None => Ok(answer["value"].clone()),
        }
    }

    pub(crate) async fn go(&self, url: &str) {
        self.call("/url", Some(json!({"url": url}))).await.unwrap();
    }

    /// Opens an address that may be a download, in which case the current page stays.
    pub(crate) async fn go_or_download(&self, url: &str) {
        drop(self.call("/url", Some(json!({"url": url}))).await);
    }

    /// Deletes all cookies.
    pub(crate) async fn log_out(&self) {
        let deleted = self.client.delete(format!("{}/cookie", self.session));
        deleted.send().await.unwrap();
    }

    pub(crate) async fn url(&self) -> String {
        let url = self.call("/url", None).await.unwrap();
        url.as_str().unwrap().to_owned()
    }

    pub(crate) async fn title(&self) -> String {
        let title = self.call("/title", None).await.unwrap();
        title.as_str().unwrap().to_owned()
    }

    /// Runs a script in the page and returns its result.
    pub(crate) async fn script(&self, script: &str) -> Value {
        let body = json!({"script": script, "args": []});
        self.call("/execute/sync", Some(body)).await.unwrap()
    }

    /// Runs a script that calls its last argument when it is done.
    pub(crate) async fn script_until(&self, script: &str) -> Value {
        let body = json!({"script": script, "args": []});
        self.call("/execute/async", Some(body)).await.unwrap()
    }

    /// Sends a command to the developer tools.
    pub(crate) async fn tools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.call("/goog/cdp/execute", Some(body)).await.unwrap()
    }

    /// Sets the cookie of a logged-in user, in the form `name=value`.
    pub(crate) async fn log_in(&self, url: &str, cookie: &str) {
        let (name, value) = cookie.split_once('=').unwrap();
        self.go(&format!("{url}/log-in")).await;
        let cookie = json!({"cookie": {"name": name, "value": value}});
        self.call("/cookie", Some(cookie)).await.unwrap();
    }

    async fn find(&self, css: &str) -> String {
        let wanted = json!({"using": "css selector", "value": css});
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.call("/element", Some(wanted.clone())).await {
                Ok(found) => return found[ELEMENT].as_str().unwrap().to_owned(),
                Err(error) if tokio::time::Instant::now() > end => {
                    panic!("nothing is {css}: {error}\n{}", self.text().await)
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Types into a field.
    pub(crate) async fn fill(&self, css: &str, text: &str) {
        let id = self.find(css).await;
        let clear = self
            .call(&format!("/element/{id}/clear"), Some(json!({})))
            .await;
        clear.unwrap();
        let keys = json!({"text": text});
        self.call(&format!("/element/{id}/value"), Some(keys))
            .await
            .unwrap();
    }

    /// Chooses a file in a file field.
    pub(crate) async fn choose(&self, css: &str, path: &std::path::Path) {
        let id = self.find(css).await;
        let keys = json!({"text": path.display().to_string()});
        self.call(&format!("/element/{id}/value"), Some(keys))
            .await
            .unwrap();
    }

    /// Clicks an element.
    pub(crate) async fn press(&self, css: &str) {
        let id = self.find(css).await;
        self.call(&format!("/element/{id}/click"), Some(json!({})))
            .await
            .unwrap();
    }

    /// Clicks a button that decides, after it has been in its place long enough to act.
    pub(crate) async fn decide(&self, css: &str) {
        let css_text = json!(css);
        // The page measures its buttons at intervals, and the earlier mark would still be there after scrolling.
        self.script(&format!(
            "const b = document.querySelector({css_text}); b.scrollIntoView({{block: 'center', behavior: 'instant'}}); b.removeAttribute('data-settled')"
        ))
        .await;
        self.until_script(&format!(
            "return document.querySelector({css_text}).hasAttribute('data-settled')"
        ))
        .await;
        self.press(css).await;
    }

    /// Types keys where the focus is. `\u{e007}` is Enter; `\u{e008}` and `\u{e009}` hold Shift and Control until the
    /// end.
    pub(crate) async fn keys(&self, text: &str) {
        let mut actions = Vec::new();
        for c in text.chars() {
            actions.push(json!({"type": "keyDown", "value": c.to_string()}));
            if !matches!(c, '\u{e008}' | '\u{e009}') {
                actions.push(json!({"type": "keyUp", "value": c.to_string()}));
            }
        }
        for held in ["\u{e008}", "\u{e009}"] {
            if text.contains(held) {
                actions.push(json!({"type": "keyUp", "value": held}));
            }
        }
        let body = json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]});
        self.call("/actions", Some(body)).await.unwrap();
    }

    /// Moves the mouse to a point of the window, and clicks if `press` is set.
    pub(crate) async fn mouse(&self, x: i64, y: i64, press: bool) {
        let mut actions = vec![
            json!({"type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport"}),
        ];
        if press {
            actions.push(json!({"type": "pointerDown", "button": 0}));
            actions.push(json!({"type": "pointerUp", "button": 0}));
        }
        let body = json!({"actions": [{"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}]});
        self.call("/actions", Some(body)).await.unwrap();
    }

    /// The visible text of the page.
    pub(crate) async fn text(&self) -> String {
        let text = self.script("return document.body.innerText").await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the page shows a text.
    pub(crate) async fn until(&self, says: &str) {
        self.until_script(&format!(
            "return document.body.innerText.includes({})",
            json!(says)
        ))
        .await;
    }

    /// Waits until a script returns true.
    pub(crate) async fn until_script(&self, script: &str) {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let body = json!({"script": script, "args": []});
            // A page that is being unloaded does not answer.
            let is_so = self.call("/execute/sync", Some(body)).await;
            if is_so.is_ok_and(|value| value == json!(true)) {
                return;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "never: {script}\n{}\n{}",
                self.url().await,
                self.text().await
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Opens a window of the same browser and switches to it. Returns its name.
    pub(crate) async fn tab(&self) -> String {
        let made = self
            .call("/window/new", Some(json!({"type": "tab"})))
            .await
            .unwrap();
        let name = made["handle"].as_str().unwrap().to_owned();
        self.switch(&name).await;
        name
    }

    /// The name of the current window.
    pub(crate) async fn here(&self) -> String {
        let name = self.call("/window", None).await.unwrap();
        name.as_str().unwrap().to_owned()
    }

    pub(crate) async fn switch(&self, name: &str) {
        let body = json!({"handle": name});
        self.call("/window", Some(body)).await.unwrap();
    }

    /// Sets the size of the window, and the light or dark theme.
    pub(crate) async fn look(&self, width: u32, theme: &str) {
        let size =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
        self.tools("Emulation.setDeviceMetricsOverride", size).await;
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": theme}]});
        self.tools("Emulation.setEmulatedMedia", features).await;
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The driver ends its browser when it is told to; a killed driver would leave it running.
        let session = self.session.clone();
        let quit = std::thread::spawn(move || {
            let done = Command::new("curl")
                .args([
                    "--silent",
                    "--max-time",
                    "10",
                    "--request",
                    "DELETE",
                    &session,
                ])
                .stdout(Stdio::null())
                .status();
            drop(done);
        });
        let _ = quit.join();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
