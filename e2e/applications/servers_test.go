package applications

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// moves is how often a server is moved under its client's hands.
const moves = 2

// A key-value store under load: whatever it acknowledged is still there, and it was never started anew.
func TestRedisKeepsWhatItAcknowledged(t *testing.T) {
	p := run(t, "redis:1", []string{"redis-server", "--save", "", "--protected-mode", "no"})
	first, err := p.dial(6379)
	if err != nil {
		t.Fatal(err)
	}
	identity := runID(t, first)
	const clients = 4
	stop, acknowledged := make(chan struct{}), [clients]int{}
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() { acknowledged[i] = p.write(i, stop) })
	}
	for range moves {
		time.Sleep(500 * time.Millisecond)
		p.move()
	}
	time.Sleep(500 * time.Millisecond)
	close(stop)
	group.Wait()
	connection, err := p.dial(6379)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if now := runID(t, connection); now != identity {
		t.Errorf("run_id %s became %s: it was started anew", identity, now)
	}
	reader := bufio.NewReader(connection)
	for i, count := range acknowledged {
		t.Logf("client %d: %d writes acknowledged", i, count)
		if count < 100 {
			t.Errorf("client %d wrote %d times only", i, count)
		}
		for n := range count {
			value, err := ask(connection, reader, fmt.Sprintf("GET key:%d:%d", i, n))
			if err != nil || value != fmt.Sprint(n) {
				t.Fatalf("key:%d:%d is %q, %v", i, n, value, err)
			}
		}
	}
}

// write sets key after key until stop, connecting again when it must, and returns how many sets were acknowledged.
func (p *pod) write(client int, stop <-chan struct{}) (count int) {
	for {
		connection, err := p.dial(6379)
		if err != nil {
			p.t.Error(err)
			return count
		}
		reader := bufio.NewReader(connection)
		for err == nil {
			select {
			case <-stop:
				connection.Close()
				return count
			default:
			}
			connection.SetDeadline(time.Now().Add(5 * time.Second))
			var answer string
			if answer, err = ask(connection, reader, fmt.Sprintf("SET key:%d:%d %d", client, count, count)); err == nil && answer == "OK" {
				count++
			}
		}
		connection.Close()
	}
}

// ask sends one inline command and returns the simple or bulk string that answers it.
func ask(connection net.Conn, reader *bufio.Reader, command string) (string, error) {
	if _, err := io.WriteString(connection, command+"\r\n"); err != nil {
		return "", err
	}
	line, err := reader.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	if !strings.HasPrefix(line, "$") {
		return strings.TrimPrefix(line, "+"), nil
	}
	length, err := strconv.Atoi(line[1:])
	if err != nil || length < 0 {
		return "", fmt.Errorf("%s: %q", command, line)
	}
	text := make([]byte, length+2)
	_, err = io.ReadFull(reader, text)
	return string(text[:length]), err
}

func runID(t *testing.T, connection net.Conn) string {
	t.Helper()
	info, err := ask(connection, bufio.NewReader(connection), "INFO server")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(info, "\r\n") {
		if id, ok := strings.CutPrefix(line, "run_id:"); ok {
			return id
		}
	}
	t.Fatalf("no run_id in %q", info)
	return ""
}

const nginxConfiguration = `daemon off; user root; worker_processes 2; error_log stderr; pid /run/nginx.pid;
events { worker_connections 64; }
http { access_log off; server { listen 80; root /srv; limit_rate 12m; } }`

// A download outlasts two moves: the connection is reset, and the client goes on where it was.
func TestNginxDownloadGoesOnByRange(t *testing.T) {
	script := "mkdir -p /srv /var/log/nginx /var/lib/nginx && head -c 50000000 /dev/urandom > /srv/file && " +
		"echo '" + nginxConfiguration + "' > /etc/nginx.conf && exec nginx -c /etc/nginx.conf"
	p := run(t, "nginx:1", []string{"/bin/sh", "-c", script})
	want := strings.Fields(p.sh("main", "until test -e /run/nginx.pid; do sleep 0.1; done; sha256sum /srv/file"))[0]
	finished := make(chan error, 1)
	digest, parts := sha256.New(), 0
	go func() {
		var received int64
		for received < 50_000_000 {
			parts++
			if parts > 30 {
				finished <- fmt.Errorf("gave up with %d bytes in %d parts", received, parts)
				return
			}
			n, _ := p.download(received, digest)
			received += n
		}
		finished <- nil
	}()
	for range moves {
		time.Sleep(700 * time.Millisecond)
		p.move()
	}
	if err := <-finished; err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(digest.Sum(nil)); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	if parts < 2 {
		t.Error("the download was over before the pod moved")
	}
	t.Logf("%d parts", parts)
}

// download appends the file from offset on to sink, as far as the connection lasts.
func (p *pod) download(offset int64, sink io.Writer) (int64, error) {
	dial := func(context.Context, string, string) (net.Conn, error) { return p.dial(80) }
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequest(http.MethodGet, "http://pod/file", nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	response, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusPartialContent {
		return 0, fmt.Errorf("GET from %d: %s", offset, response.Status)
	}
	return io.Copy(sink, response.Body)
}

// Each holds a counter that a timer advances, and a word made at its start.
var services = map[string][]string{
	"python:1": {"python3", "-c", `
import http.server, secrets, threading, time
word, count = secrets.token_hex(8), 0
def advance():
    global count
    while True:
        time.sleep(0.01)
        count += 1
threading.Thread(target=advance, daemon=True).start()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(f"{word} {count}".encode())
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
`},
	"node:1": {"node", "-e", `
const word = require("crypto").randomBytes(8).toString("hex"); let count = 0;
setInterval(() => { count++ }, 10);
require("http").createServer((_, response) => response.end(word + " " + count)).listen(8080, "0.0.0.0");
`},
}

// An interpreter with threads and a heap goes on, at the next node and out of a checkpoint.
func TestServicesGoOn(t *testing.T) {
	for image, command := range services {
		t.Run(strings.TrimSuffix(image, ":1"), func(t *testing.T) {
			p := run(t, image, command)
			word, count := p.visit()
			check := func(what string) {
				t.Helper()
				now, n := p.visit()
				if now != word || n < count {
					t.Fatalf("after %s: %s %d, want %s and no less than %d", what, now, n, word, count)
				}
				count = n
				eventually(t, "the counter goes on", func() bool { _, n := p.visit(); return n > count })
			}
			p.move()
			check("a move")
			p.reborn()
			check("a checkpoint and a restore")
			p.move()
			check("another move")
		})
	}
}

// visit asks the service for its word and count.
func (p *pod) visit() (word string, count int) {
	p.t.Helper()
	connection, err := p.dial(8080)
	if err != nil {
		p.t.Fatal(err)
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(connection, "GET / HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(connection)
	if err != nil {
		p.t.Fatal(err)
	}
	body := string(answer)[strings.LastIndex(string(answer), "\n")+1:]
	if _, err := fmt.Sscan(body, &word, &count); err != nil {
		p.t.Fatalf("answer %q: %v", answer, err)
	}
	return word, count
}
