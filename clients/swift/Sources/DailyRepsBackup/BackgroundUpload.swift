import Foundation

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// Stores the log while the app is suspended: the system sends the body from a file.
///
/// Keep one for each account. If the system launches the app for the session's events, make it again with the same
/// identifier and the saved state: it goes on with what was sent.
public final class BackgroundUpload: NSObject, URLSessionDataDelegate, @unchecked Sendable {
    private let device: Device
    private let file: URL
    private let ended: @Sendable (Result<Void, any Error>) -> Void
    private var session: URLSession!
    private let lock = NSLock()
    private var bodies: [Int: Data] = [:]  // by task

    /// - Parameters:
    ///   - device: The device whose log is stored.
    ///   - file: Where the body is kept until the upload has ended.
    ///   - configuration: `.background(withIdentifier:)`, on Apple's platforms.
    ///   - ended: Gets the outcome of each upload, as ``Device/finishBackgroundUpload(_:body:)`` has it. Whatever it
    ///     is, the next ``Device/sync()`` does what is right. If the system launched the app for this, call its
    ///     completion handler here.
    public init(
        of device: Device, file: URL, configuration: URLSessionConfiguration,
        ended: @escaping @Sendable (Result<Void, any Error>) -> Void
    ) {
        self.device = device
        self.file = file
        self.ended = ended
        super.init()
        configuration.urlCache = nil
        configuration.urlCredentialStorage = nil
        configuration.httpShouldSetCookies = false
        session = URLSession(configuration: configuration, delegate: self, delegateQueue: nil)
    }

    /// Starts an upload. Returns false if there is nothing to store, or if an upload is under way.
    ///
    /// - Throws: The errors of ``Device/backgroundUpload(to:)``.
    public func start() async throws -> Bool {
        let tasks = await withCheckedContinuation { all in session.getAllTasks { all.resume(returning: $0.count) } }
        guard tasks == 0, let request = try await device.backgroundUpload(to: file) else { return false }
        session.uploadTask(with: request, fromFile: file).resume()
        return true
    }

    public func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        lock.withLock { bodies[dataTask.taskIdentifier, default: Data()].append(data) }
    }

    public func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?) {
        let body = lock.withLock { bodies.removeValue(forKey: task.taskIdentifier) ?? Data() }
        let response = error == nil ? task.response : nil  // an answer that broke off is lost
        Task { [device, file, ended] in
            do {
                try await device.finishBackgroundUpload(response, body: body)
                try? FileManager.default.removeItem(at: file)
                ended(.success(()))
            } catch { ended(.failure(error)) }
        }
    }
}
