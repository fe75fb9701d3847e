#if canImport(Glibc)
    import Foundation
    import Glibc
    import HTTPTypes
    import OpenAPIRuntime

    /// One connection for each request, to an address of this machine. FoundationNetworking hangs at a 401 with a
    /// challenge, before Swift 6.3.2.
    struct SocketTransport: ClientTransport {
        struct Broken: Error {}

        func send(_ request: HTTPRequest, body: HTTPBody?, baseURL: URL, operationID: String) async throws -> (
            HTTPResponse, HTTPBody?
        ) {
            var bytes = Data()
            if let body { bytes = try await Data(collecting: body, upTo: .max) }
            var head = "\(request.method.rawValue) \(request.path ?? "/") HTTP/1.1\r\n"
            head += "Host: \(baseURL.host ?? ""):\(baseURL.port ?? 80)\r\nConnection: close\r\n"
            if body != nil && request.headerFields[.contentLength] == nil {
                head += "Content-Length: \(bytes.count)\r\n"
            }
            for field in request.headerFields { head += "\(field.name): \(field.value)\r\n" }
            let answer = try exchange(Data((head + "\r\n").utf8) + bytes, port: UInt16(baseURL.port ?? 80))
            guard let end = answer.range(of: Data("\r\n\r\n".utf8)) else { throw Broken() }
            var lines = String(decoding: answer[..<end.lowerBound], as: UTF8.self).components(separatedBy: "\r\n")
            guard let status = Int(lines.removeFirst().split(separator: " ")[1]) else { throw Broken() }
            var response = HTTPResponse(status: .init(code: status))
            for line in lines {
                let parts = line.split(separator: ":", maxSplits: 1)
                response.headerFields[HTTPField.Name(String(parts[0]))!] = parts[1].trimmingCharacters(in: .whitespaces)
            }
            return (response, HTTPBody(Data(answer[end.upperBound...])))
        }

        private func exchange(_ request: Data, port: UInt16) throws -> Data {
            let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            defer { close(descriptor) }
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_port = port.bigEndian
            address.sin_addr.s_addr = inet_addr("127.0.0.1")
            let connected = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            guard connected == 0 else { throw Broken() }
            var sent = 0
            while sent < request.count {
                let count = request[sent...].withUnsafeBytes {
                    Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
                }
                guard count > 0 else { break }  // the server may have answered before the end of the body
                sent += count
            }
            var answer = Data()
            var buffer = [UInt8](repeating: 0, count: 65_536)
            while true {
                let count = recv(descriptor, &buffer, buffer.count, 0)
                guard count > 0 else { return answer }
                answer.append(contentsOf: buffer[..<count])
            }
        }
    }
#endif
