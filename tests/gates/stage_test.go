package gates

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	experiment = "new-checkout"
	operator   = "stage-operate-token"
	reader     = "stage-read-token-0123"
	patience   = 90 * time.Second
)

// A stage: traffic and receivers of `load-tests stage`, and a daemon that comes and goes.
type stage struct {
	t      *testing.T
	dir    string
	config string
	url    string
	play   *exec.Cmd
	orders func(string)
	daemon *exec.Cmd
}

// Programs are named by the environment, as .ci/run does.
func program(t *testing.T, name string) string {
	path := os.Getenv(name)
	if path == "" {
		t.Fatalf("%s: name the program, as `.ci/run gates` does", name)
	}
	return path
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, dir: t.TempDir()}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := listener.Addr().String()
	must(t, listener.Close())
	s.url = "http://" + address
	s.play = exec.Command(program(t, "LOAD_TESTS"), "stage", "--dir", s.dir, "--experiments", "2", "--http", address, "--token", operator)
	s.play.Stderr = os.Stderr
	in, err := s.play.StdinPipe()
	must(t, err)
	out, err := s.play.StdoutPipe()
	must(t, err)
	must(t, s.play.Start())
	s.orders = func(line string) { fmt.Fprintln(in, line) }
	t.Cleanup(func() {
		s.stop()
		_ = in.Close()
		_ = s.play.Process.Kill()
		_ = s.play.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	s.config = strings.TrimSpace(line)
	// Silence is noticed soon, nobody sends records of `quiet`, and reads need a token.
	s.edit("rules/new-checkout.yaml", "quality:\n", "quality:\n  silence: {after: 10s, do: hold}\n")
	quiet := "guardrail: v1\noverview: {experiment: quiet, owner: me}\nbuckets: {a: {baseline: true}, b: {}}\n" +
		"guardrails: [{metric: error_rate, limit: 5%}]\nactions: {mode: observe, notify: {slack: checkout-exp}}\n"
	must(t, os.WriteFile(filepath.Join(s.dir, "rules/quiet.yaml"), []byte(quiet), 0o644))
	must(t, os.WriteFile(filepath.Join(s.dir, "reader"), []byte(reader), 0o644))
	s.edit("guardraild.yaml", "tokens: [", "open_reads: never\n  tokens: [{name: controllers, role: read, token: {file: reader}}, ")
	return s
}

func (s *stage) edit(file, old, new string) {
	path := filepath.Join(s.dir, file)
	text, err := os.ReadFile(path)
	must(s.t, err)
	if !strings.Contains(string(text), old) {
		s.t.Fatalf("%s has no %q:\n%s", file, old, text)
	}
	must(s.t, os.WriteFile(path, []byte(strings.Replace(string(text), old, new, 1)), 0o644))
}

func (s *stage) start() {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(s.t, err)
	s.daemon = exec.Command(program(s.t, "GUARDRAILD"), "run", "--config", s.config)
	s.daemon.Stderr = log
	must(s.t, s.daemon.Start())
	must(s.t, log.Close())
}

func (s *stage) stop() {
	if s.daemon == nil {
		return
	}
	_ = s.daemon.Process.Signal(syscall.SIGTERM)
	_ = s.daemon.Wait()
	s.daemon = nil
	if s.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		lines := bytes.Split(log, []byte("\n"))
		s.t.Logf("the daemon's last lines:\n%s", bytes.Join(lines[max(0, len(lines)-30):], []byte("\n")))
	}
}

// generate returns what `guardraild generate KIND` makes of the stage's rule.
func (s *stage) generate(kind, url string) []byte {
	out, err := exec.Command(program(s.t, "GUARDRAILD"), "generate", kind, "--rules", filepath.Join(s.dir, "rules/new-checkout.yaml"), "--url", url).Output()
	must(s.t, err)
	return out
}

// operate is an operator's POST.
func (s *stage) operate(verb string) {
	body := strings.NewReader(`{"reason": "the test says so", "for": "1h"}`)
	if verb != "hold" {
		body = strings.NewReader(`{"reason": "the test says so"}`)
	}
	request, err := http.NewRequest("POST", s.url+"/api/v1/experiments/"+experiment+"/"+verb, body)
	must(s.t, err)
	request.Header.Set("Authorization", "Bearer "+operator)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	must(s.t, err)
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		s.t.Fatalf("%s: %s", verb, response.Status)
	}
}

// A gate is what the verdict says.
type gate struct {
	Verdict string
	Go      bool
	Stop    bool
	Reason  string
}

// verdict is the status and the body; a status of 0 is no answer.
func (s *stage) verdict(name string) (int, gate) {
	request, err := http.NewRequest("GET", s.url+"/api/v1/experiments/"+name+"/verdict", nil)
	must(s.t, err)
	request.Header.Set("Authorization", "Bearer "+reader)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, gate{}
	}
	defer response.Body.Close()
	var g gate
	must(s.t, json.NewDecoder(response.Body).Decode(&g))
	return response.StatusCode, g
}

// until waits for a verdict, and returns its reason.
func (s *stage) until(what string, name string, holds func(gate) bool) string {
	s.t.Helper()
	var last gate
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		status, g := s.verdict(name)
		if status == 200 && holds(g) {
			return g.Reason
		}
		last = g
	}
	s.t.Fatalf("not in time: %s; at last %+v", what, last)
	return ""
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
