//! A browser without a window for tests of pages. It keeps its cookie and reads the token of its forms.

use axum::body::Body;
use errand::password::hash_password;
use errand_testkit::{Reply, Team, TestApp};
use http::Method;

/// The password of every user in these tests.
pub(crate) const PASSWORD: &str = "correct horse battery";

/// A person at their browser.
pub(crate) struct Browser<'a> {
    pub(crate) app: &'a TestApp,
    pub(crate) cookie: String,
    pub(crate) token: String,
}

/// A response: a page, or a redirect.
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) html: String,
    pub(crate) location: Option<String>,
    pub(crate) reply: Reply,
}

impl Seen {
    fn of(reply: Reply) -> Self {
        Self {
            status: reply.status,
            html: String::from_utf8_lossy(&reply.bytes).into_owned(),
            location: reply.header("location").map(str::to_owned),
            reply,
        }
    }

    /// Asserts status 200 and returns the page.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, 200, "{}", self.html);
        self.html
    }

    /// Asserts a redirect and returns its target.
    #[track_caller]
    pub(crate) fn leads_to(self) -> String {
        assert_eq!(self.status, 303, "{}", self.html);
        self.location.unwrap()
    }

    /// Asserts the status of a refusal and returns its page.
    #[track_caller]
    pub(crate) fn refused(self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.html);
        self.html
    }
}

pub(crate) fn form(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

/// The text between two markers.
pub(crate) fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(inside, _)| inside)
}

/// Sends a request with the headers of a browser.
pub(crate) async fn ask(
    app: &TestApp,
    method: Method,
    path: &str,
    cookie: &str,
    body: Option<&str>,
    more: &[(&str, &str)],
) -> Seen {
    let mut headers = vec![("accept", "text/html"), ("cookie", cookie)];
    if body.is_some() {
        headers.push(("content-type", "application/x-www-form-urlencoded"));
    }
    headers.extend_from_slice(more);
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_owned()));
    Seen::of(app.send(method, path, &headers, body).await)
}

/// Logs in and returns the response.
pub(crate) async fn log_in(app: &TestApp, email: &str, password: &str) -> Seen {
    let body = form(&[("email", email), ("password", password), ("next", "/")]);
    ask(app, Method::POST, "/log-in", "", Some(&body), &[]).await
}

impl<'a> Browser<'a> {
    /// Creates a team and logs in its owner.
    pub(crate) async fn owner(app: &'a TestApp, name: &str) -> (Browser<'a>, Team) {
        let team = app.team(name).await;
        let browser = Self::of(app, &format!("owner@{name}.example")).await;
        (browser, team)
    }

    /// Logs in an existing user.
    pub(crate) async fn of(app: &'a TestApp, email: &str) -> Browser<'a> {
        let hash = hash_password(PASSWORD).unwrap();
        app.store().set_password(email, hash).await.unwrap();
        let seen = log_in(app, email, PASSWORD).await;
        assert_eq!(seen.status, 303, "{}", seen.html);
        let cookie = seen.reply.header("set-cookie").unwrap();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        let mut browser = Self {
            app,
            cookie,
            token: String::new(),
        };
        let page = browser.get("/account").await;
        let token = between(&page.html, "name=\"form_token\" value=\"", "\"");
        browser.token = token.unwrap_or_default().to_owned();
        browser
    }

    pub(crate) async fn get(&self, path: &str) -> Seen {
        ask(self.app, Method::GET, path, &self.cookie, None, &[]).await
    }

    /// Sends one of our forms, with its token.
    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Seen {
        let mut all = vec![("form_token", self.token.as_str())];
        all.extend_from_slice(fields);
        let more = [("sec-fetch-site", "same-origin")];
        ask(
            self.app,
            Method::POST,
            path,
            &self.cookie,
            Some(&form(&all)),
            &more,
        )
        .await
    }

    /// Sends a form and returns the page that it redirects to.
    pub(crate) async fn post_and_follow(&self, path: &str, fields: &[(&str, &str)]) -> String {
        let to = self.post(path, fields).await.leads_to();
        self.get(&to).await.ok()
    }

    /// Sends a form with files.
    pub(crate) async fn upload(&self, path: &str, parts: &[(&str, Option<&str>, &str)]) -> Seen {
        let mut body = String::new();
        for (name, filename, text) in parts {
            let file = filename.map_or_else(String::new, |name| format!("; filename=\"{name}\""));
            body.push_str(&format!(
                "--x\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n{text}\r\n"
            ));
        }
        body.push_str("--x--\r\n");
        let headers = [
            ("accept", "text/html"),
            ("cookie", self.cookie.as_str()),
            ("content-type", "multipart/form-data; boundary=x"),
            ("sec-fetch-site", "same-origin"),
        ];
        let reply = self
            .app
            .send(Method::POST, path, &headers, Body::from(body))
            .await;
        Seen::of(reply)
    }
}
