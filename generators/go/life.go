// Runs the clients that ogen and oapi-codegen generate from openapi.yaml against a real server.
//
// The test generates the packages api/ogen and api/oapi beside this file. Then it runs this program, once for each client.
// The program prints what the client decoded, one value a line: the status of the server, the version of its document in
// YAML, the codes of two problems, the number of the stored version, and the bytes that came back.
package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"

	"example.test/generators/api/oapi"
	"example.test/generators/api/ogen"
	"github.com/go-faster/yaml"
)

var blob = []byte("an encrypted log")

func main() {
	url := os.Getenv("TARGET_URL")
	anonymous := &http.Client{Transport: Proofs{}}
	user := &http.Client{Transport: Proofs{
		os.Getenv("TARGET_USER_ID"), os.Getenv("TARGET_STORAGE_KEY"), os.Getenv("TARGET_KEYID"), os.Getenv("TARGET_SECRET"),
	}}
	clients := map[string]func(context.Context, string, *http.Client, *http.Client) error{"ogen": withOgen, "oapi": withOapi}
	if err := clients[os.Args[1]](context.Background(), url, anonymous, user); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// withOapi uses the client of oapi-codegen.
func withOapi(ctx context.Context, url string, anonymous, user *http.Client) error {
	service, err := oapi.NewClientWithResponses(url, oapi.WithHTTPClient(anonymous))
	if err != nil {
		return err
	}
	account, err := oapi.NewClientWithResponses(url, oapi.WithHTTPClient(user))
	if err != nil {
		return err
	}
	health, err := service.GetHealthWithResponse(ctx)
	if err != nil {
		return err
	}
	fmt.Println(health.JSON200.Status)
	document, err := service.GetOpenapiYamlWithResponse(ctx)
	if err != nil {
		return err
	}
	fmt.Println(document.YAML200.Openapi)
	missing, err := service.FetchBackupWithResponse(ctx)
	if err != nil {
		return err
	}
	fmt.Println(missing.ApplicationproblemJSON401.Code)
	registered, err := account.RegisterUserWithResponse(ctx)
	if err != nil {
		return err
	}
	if registered.JSON201 == nil {
		return fmt.Errorf("registerUser: %s", registered.Status())
	}
	empty, err := account.FetchBackupWithResponse(ctx)
	if err != nil {
		return err
	}
	fmt.Println(empty.ApplicationproblemJSON404.Code)
	stored, err := account.StoreBackupWithResponse(ctx, oapi.BackupUpload{Data: blob})
	if err != nil {
		return err
	}
	fmt.Println(stored.JSON201.Version)
	fetched, err := account.FetchBackupWithResponse(ctx)
	if err != nil {
		return err
	}
	fmt.Println(string(fetched.JSON200.Data))
	return nil
}

// later leaves all proofs to the transport of the client, which sets them when the body is final.
type later struct{}

func (later) AdminKey(context.Context, ogen.OperationName) (ogen.AdminKey, error) {
	return ogen.AdminKey{}, nil
}

func (later) AppSignature(context.Context, ogen.OperationName) (ogen.AppSignature, error) {
	return ogen.AppSignature{}, nil
}

func (later) UserCredentials(context.Context, ogen.OperationName) (ogen.UserCredentials, error) {
	return ogen.UserCredentials{}, nil
}

// withOgen uses the client of ogen.
func withOgen(ctx context.Context, url string, anonymous, user *http.Client) error {
	service, err := ogen.NewClient(url, later{}, ogen.WithClient(anonymous))
	if err != nil {
		return err
	}
	account, err := ogen.NewClient(url, later{}, ogen.WithClient(user))
	if err != nil {
		return err
	}
	health, err := service.GetHealth(ctx)
	if err != nil {
		return err
	}
	fmt.Println(health.(*ogen.HealthHeaders).Response.Status)
	raw, err := service.GetOpenapiYaml(ctx)
	if err != nil {
		return err
	}
	answer := raw.(*ogen.GetOpenapiYamlOKRawApplicationYaml).Response
	defer answer.Body.Close()
	var document struct{ Openapi string }
	if err := yaml.NewDecoder(answer.Body).Decode(&document); err != nil {
		return err
	}
	fmt.Println(document.Openapi)
	missing, err := service.FetchBackup(ctx)
	if err != nil {
		return err
	}
	fmt.Println(missing.(*ogen.UnauthorizedHeaders).Response.Code)
	registered, err := account.RegisterUser(ctx)
	if err != nil {
		return err
	}
	if _, isNew := registered.(*ogen.RegisterUserCreated); !isNew {
		return fmt.Errorf("registerUser: %T", registered)
	}
	empty, err := account.FetchBackup(ctx)
	if err != nil {
		return err
	}
	fmt.Println(empty.(*ogen.NoBackupHeaders).Response.Code)
	upload := &ogen.BackupUpload{Data: ogen.BackupData(base64.StdEncoding.EncodeToString(blob))}
	stored, err := account.StoreBackup(ctx, upload)
	if err != nil {
		return err
	}
	fmt.Println(stored.(*ogen.StoreBackupCreatedHeaders).Response.Version)
	fetched, err := account.FetchBackup(ctx)
	if err != nil {
		return err
	}
	data, err := base64.StdEncoding.DecodeString(string(fetched.(*ogen.BackupHeaders).Response.Data))
	if err != nil {
		return err
	}
	fmt.Println(string(data))
	return nil
}
