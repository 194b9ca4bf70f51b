package badinput

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

const secret = "hunter2-of-badinput"

var (
	login    = &runtimeapi.AuthConfig{Username: "user", Password: secret}
	basic    = "Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+secret))
	granted  = "granted-by-badinput"
	tokenFor = map[string]string{"basic": basic, "refresh": secret}
)

// guarded answers everything with 401 and a demand until it is sent what it wants.
func guarded(e *evil, demand, want string) {
	plainImage(e)
	e.behave = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == want {
			return false
		}
		w.Header().Set("WWW-Authenticate", demand)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

// tokens is a token service on 127.0.0.2 that grants a token for a password or a refresh token.
func tokens() *evil {
	e := newSecure(2, nil)
	e.behave = func(w http.ResponseWriter, r *http.Request) bool {
		_ = r.ParseForm()
		if r.Header.Get("Authorization") == tokenFor["basic"] || r.PostForm.Get("refresh_token") == tokenFor["refresh"] {
			fmt.Fprintf(w, `{"token":%q}`, granted)
		} else {
			w.WriteHeader(http.StatusUnauthorized)
		}
		return true
	}
	return e
}

// credential is a row that pulls with a credential from a registry that demands one. No secret may get into a message,
// the log, or to where it does not belong.
func credential(name string, auth *runtimeapi.AuthConfig, bend func(*scene, *evil), codes []codes.Code, words ...string) row {
	row := pullFrom("with "+name, func() *evil { return newSecure(1, nil) }, auth, bend, codes, words...)
	call := row.call
	row.call = func(s *scene) error {
		err := call(s)
		text, _ := os.ReadFile(lab.Node().Log)
		for _, word := range []string{secret, basic[6:], granted} {
			if strings.Contains(string(text), word) {
				s.Errorf("the log holds %q", word)
			}
			if err != nil && strings.Contains(err.Error(), word) {
				s.Errorf("the message holds %q: %v", word, err)
			}
		}
		return err
	}
	return row
}

// Every kind of AuthConfig, and what must not become of it.
func TestCredentials(t *testing.T) {
	demandBasic := func(_ *scene, e *evil) { guarded(e, `Basic realm="x"`, basic) }
	demandToken := func(s *scene, e *evil) {
		service := tokens()
		s.Cleanup(service.Close)
		guarded(e, fmt.Sprintf(`Bearer realm="%s/token",service="x"`, service.URL), "Bearer "+granted)
	}
	open := func(s *scene, e *evil) {
		plainImage(e)
		s.Cleanup(func() {
			if e.count("Basic")+e.count("Bearer") > 0 {
				s.Errorf("a credential was sent unasked: %v", e.asked)
			}
		})
	}
	of := func(change func(*runtimeapi.AuthConfig)) *runtimeapi.AuthConfig {
		auth := &runtimeapi.AuthConfig{}
		change(auth)
		return auth
	}
	encoded := func(text string) *runtimeapi.AuthConfig {
		return &runtimeapi.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte(text))}
	}
	refresh := &runtimeapi.AuthConfig{IdentityToken: secret}
	bearer := &runtimeapi.AuthConfig{RegistryToken: granted}
	elsewhere := &runtimeapi.AuthConfig{Username: "user", Password: secret, ServerAddress: "https://other.test/v2/"}
	run(t, []row{
		credential("user and password for Basic", login, demandBasic, welcome),
		credential("user and password for a token", login, demandToken, welcome),
		credential("auth for Basic", encoded("user:"+secret), demandBasic, welcome),
		credential("auth for a token", encoded("user:"+secret), demandToken, welcome),
		credential("an identity token for a token", refresh, demandToken, welcome),
		credential("a registry token", bearer, demandToken, welcome),
		credential("a password nobody asks for", login, open, welcome),
		credential("an identity token nobody asks for", refresh, open, welcome),
		credential("an empty credential", &runtimeapi.AuthConfig{}, open, welcome),
		credential("a credential for another registry, which this one does not get", elsewhere, demandBasic, forbidden, "credential"),
		credential("a credential for another registry, which the token service does not get", elsewhere, demandToken, forbidden, "credential"),
		credential("a wrong password", of(func(a *runtimeapi.AuthConfig) { a.Username, a.Password = "user", "x"+secret }), demandBasic, forbidden, "credential"),
		credential("a wrong password for a token", of(func(a *runtimeapi.AuthConfig) { a.Username, a.Password = "user", "x"+secret }), demandToken, forbidden, "credential"),
		credential("an identity token for Basic", refresh, demandBasic, forbidden, "user name and password"),
		credential("a registry token that is refused", of(func(a *runtimeapi.AuthConfig) { a.RegistryToken = "x" + secret }), demandToken, forbidden, "token was refused"),
		credential("no credential for Basic", nil, demandBasic, forbidden, "credential"),
		credential("no credential for a token", nil, demandToken, forbidden, "credential"),
		credential("auth that is no base64", of(func(a *runtimeapi.AuthConfig) { a.Auth = secret + "!" }), demandBasic, refused, "auth"),
		credential("auth without a colon", encoded(secret), demandBasic, refused, "auth"),
		credential("a user with a line feed", of(func(a *runtimeapi.AuthConfig) { a.Username, a.Password = "a\r\nX-Evil: 1", secret }), demandBasic, forbidden),
		credential("a registry token with a line feed", of(func(a *runtimeapi.AuthConfig) { a.RegistryToken = "a\r\nX-Evil: " + secret }), demandToken, forbidden),
	})
}

// Token services: whom the password must not reach.
func TestTokenServices(t *testing.T) {
	realm := func(of func(*scene) string) func(*scene, *evil) {
		return func(s *scene, e *evil) {
			guarded(e, fmt.Sprintf(`Bearer realm="%s",service="x"`, of(s)), "Bearer "+granted)
		}
	}
	fixed := func(address string) func(*scene, *evil) { return realm(func(*scene) string { return address }) }
	answering := func(answer func(http.ResponseWriter)) func(*scene, *evil) {
		return realm(func(s *scene) string {
			service := tokens()
			s.Cleanup(service.Close)
			service.behave = func(w http.ResponseWriter, _ *http.Request) bool { answer(w); return true }
			return service.URL
		})
	}
	body := func(text string) func(*scene, *evil) {
		return answering(func(w http.ResponseWriter) { fmt.Fprint(w, text) })
	}
	run(t, []row{
		credential("a token service without TLS", login, realm(func(s *scene) string {
			plain := newEvil()
			s.Cleanup(func() {
				if plain.count("") > 0 {
					s.Error("it was asked")
				}
				plain.Close()
			})
			return plain.URL
		}), forbidden, "https"),
		credential("a token service of the cloud's metadata", login, fixed("http://169.254.169.254/latest"), forbidden, "https"),
		credential("a token service that is a file", login, fixed("file:///etc/passwd"), forbidden, "https"),
		credential("a token service that is a path", login, fixed("/token"), forbidden, "URL"),
		credential("a token service that is nothing", login, fixed(""), forbidden, "URL"),
		credential("a token service of an unknown authority", login, realm(func(s *scene) string {
			service := newSecure(2, strange)
			s.Cleanup(service.Close)
			return service.URL
		}), unserved, "RegistryUnavailable"),
		credential("a token service that is gone", login, fixed("https://127.0.0.2:1/token"), unserved, "RegistryUnavailable"),
		credential("a token of 2 MiB", login, body(`{"token":"`+repeated(2<<20)+`"}`), tooLarge),
		credential("a token of 100 KiB", login, body(`{"token":"`+repeated(100<<10)+`"}`), forbidden, "token"),
		credential("a token that is a page", login, body("<html><body>log in</body></html>"), forbidden, "token"),
		credential("a token with a line feed", login, body(`{"token":"a\r\nX: y"}`), forbidden, "token"),
		credential("a token that is a number", login, body(`{"token":1}`), forbidden, "token"),
		credential("no token", login, body(`{}`), forbidden, "token"),
		credential("a wrong token", login, body(`{"token":"x"}`), forbidden, "credential"),
		credential("a token service that redirects", login, realm(func(s *scene) string {
			thief, service := tokens(), tokens()
			s.Cleanup(func() {
				if thief.count("") > 0 {
					s.Errorf("the thief was asked: %v", thief.asked)
				}
				thief.Close()
				service.Close()
			})
			service.behave = func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
				return true
			}
			return service.URL
		}), forbidden, "token service"),
	})
}
