package kube

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"meridian.dev/e2e/fabric"
)

const store = "http://" + fabric.Gateway + ":2379"

// program starts a part of the control plane.
func (c *Cluster) program(name string, flags ...string) (*Process, error) {
	p := &Process{Name: name, Log: logFile(c.directory, name), command: append([]string{Binary(name)}, flags...)}
	c.plane = append(c.plane, p)
	return p, p.Start()
}

// etcd keeps nothing beyond the cluster's life, so it need not wait for the disk.
func (c *Cluster) etcd() error {
	p, err := c.program("etcd", "--data-dir", filepath.Join(c.directory, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", store, "--advertise-client-urls", store,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn")
	if err != nil {
		return err
	}
	return p.wait(func() error { return get(http.DefaultClient, store+"/readyz") })
}

func (c *Cluster) apiserver() error {
	path := c.authority.path
	p, err := c.program("kube-apiserver", "--etcd-servers", store,
		"--bind-address", fabric.Gateway, "--advertise-address", fabric.Gateway, "--secure-port", fmt.Sprint(apiport),
		"--service-cluster-ip-range", services, "--authorization-mode", "Node,RBAC", "--allow-privileged",
		"--client-ca-file", path("ca.crt"), "--tls-cert-file", path("apiserver.crt"), "--tls-private-key-file", path("apiserver.key"),
		"--kubelet-certificate-authority", path("ca.crt"), "--kubelet-preferred-address-types", "InternalIP",
		"--kubelet-client-certificate", path("apiserver.crt"), "--kubelet-client-key", path("apiserver.key"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", path("service-accounts.crt"),
		"--service-account-signing-key-file", path("service-accounts.key"), "--profiling=false")
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	return p.wait(func() error { return get(client, fmt.Sprintf("https://%s:%d/readyz", fabric.Gateway, apiport)) })
}

func (c *Cluster) controllers() error {
	path := c.authority.path
	_, err := c.program("kube-controller-manager", "--kubeconfig", path("controller-manager.conf"), "--leader-elect=false",
		"--root-ca-file", path("ca.crt"), "--service-account-private-key-file", path("service-accounts.key"),
		"--use-service-account-credentials", "--profiling=false")
	if err != nil {
		return err
	}
	_, err = c.program("kube-scheduler", "--kubeconfig", path("scheduler.conf"), "--leader-elect=false", "--profiling=false")
	return err
}

// client speaks to the control plane as its administrator.
func (c *Cluster) client() (*http.Client, error) {
	own, err := tls.LoadX509KeyPair(c.authority.path("admin.crt"), c.authority.path("admin.key"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if ca, err := os.ReadFile(c.authority.path("ca.crt")); err != nil || !pool.AppendCertsFromPEM(ca) {
		return nil, errors.Join(errors.New("no certificate in ca.crt"), err)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{own}}}}, nil
}

func get(client *http.Client, url string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, 512))
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, response.Status, text)
	}
	return nil
}
